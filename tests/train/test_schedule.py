from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.train.config import Phase, TokenPassing, TrainConfig
from dovit_deploy.train.schedule import learning_rate_at, passing_at, progress_of
from tests.tiny import tiny_spec


def config_of(**changes):
    spec = changes.pop("spec", tiny_spec())
    return TrainConfig(**{"spec": spec, "steps": 8, "phases": (Phase(until=1, crop=(32, 32), batch=1),), **changes})


def thresholds(progress, **rule):
    """What 40 steps at `progress` stop at."""
    config = config_of(passing=TokenPassing(**rule))
    return [passing_at(config, progress, np.random.default_rng(step)) for step in range(40)]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = config_of(steps=100, warm_up=0.1, learning_rate=1.0)
    rates = [learning_rate_at(config, progress / 100) for progress in range(101)]
    assert rates[0] > 0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_a_run_that_another_goes_on_from_keeps_a_share_of_its_rate():
    config = config_of(steps=100, warm_up=0.1, learning_rate=2.0, final_rate=0.4)
    rates = [learning_rate_at(config, progress / 100) for progress in range(10, 101)]
    assert (rates[0], rates[45], rates[-1]) == (2, pytest.approx(1.4), pytest.approx(0.8))


def test_progress_is_counted_in_steps_or_in_time():
    assert progress_of(config_of(steps=8), step=2, seconds=1e9) == 0.25
    timed = TrainConfig(**{**config_of().model_dump(), "steps": None, "minutes": 2.0})
    assert progress_of(timed, step=10**9, seconds=30) == 0.25
    assert progress_of(timed, step=0, seconds=500) == 1


def test_annealed_thresholds_fall_from_one_to_the_last():
    rule = {"mode": "annealed", "share": 1.0, "final": 0.8, "until": 0.5}
    assert thresholds(0.0, **rule) == [1.0] * 40
    assert thresholds(0.25, **rule) == [pytest.approx(0.9)] * 40
    assert thresholds(0.5, **rule) == thresholds(1.0, **rule) == [pytest.approx(0.8)] * 40


def test_random_thresholds_begin_late_and_stay_in_their_range():
    rule = {"start": 0.6, "share": 0.5, "thresholds": (0.7, 0.9)}
    assert set(thresholds(0.59, **rule)) == {None}
    drawn = thresholds(0.6, **rule)
    assert 8 < sum(value is None for value in drawn) < 32
    assert len({value for value in drawn if value is not None}) > 5
    assert all(0.7 <= value <= 0.9 for value in drawn if value is not None)


def test_nothing_stops_when_off_or_without_gates():
    assert set(thresholds(0.9, mode="off", share=1.0)) == {None}
    dense = config_of(spec=tiny_spec(gates=()), passing=TokenPassing(share=1.0))
    assert passing_at(dense, 0.9, np.random.default_rng(0)) is None
