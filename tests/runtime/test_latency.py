"""The latency model: its curves are found again from what they give, and it predicts what it did not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovit_deploy.runtime.latency import LatencyModel, StageTime, fitted_stage

PARTS = st.floats(0.001, 10)


def model_of(*stages: StageTime, outside_ms: float = 0.0) -> LatencyModel:
    """A model of these stages."""
    return LatencyModel(
        bundle="x.dovit",
        engine="onnxruntime",
        precision="fp32",
        threads=1,
        clock="cpu",
        outside_ms=outside_ms,
        stages=stages,
        error=0.0,
        slow=1.0,
        held_out=1,
        runs=1,
        seconds=1.0,
        date="2026-11-30T00:00:00",
    )


@given(constant=PARTS, linear=PARTS, quadratic=PARTS)
def test_a_curve_is_found_again(constant: float, linear: float, quadratic: float) -> None:
    wanted = StageTime(constant=constant, linear=linear, quadratic=quadratic / 100)
    counts = [1, 50, 100, 150, 200, 250]
    found = fitted_stage(counts, wanted.at(counts).tolist())
    np.testing.assert_allclose(found.at(range(1, 251)), wanted.at(range(1, 251)), rtol=1e-6)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 1e3)), min_size=1, max_size=20))
def test_whatever_was_measured_more_tokens_never_take_less(measured: list[tuple[int, float]]) -> None:
    counts, taken = zip(*measured, strict=True)
    found = fitted_stage(counts, taken)
    assert (np.diff(found.at(range(1, 1001))) >= 0).all()
    assert float(found.at(1)) >= 0


def test_noise_of_some_percent_is_averaged() -> None:
    wanted, rng = StageTime(constant=2, linear=0.02, quadratic=1e-5), np.random.default_rng(0)
    counts = rng.integers(1, 700, 40)
    found = fitted_stage(counts.tolist(), (wanted.at(counts) * rng.normal(1, 0.03, 40)).tolist())
    checked = np.arange(1, 700)
    assert np.median(np.abs(found.at(checked) / wanted.at(checked) - 1)) < 0.02


def test_one_size_alone_is_a_constant() -> None:
    found = fitted_stage([691] * 5, [40.0] * 5)
    assert (found.constant, found.linear, found.quadratic) == (pytest.approx(40.0), 0, 0)


def test_a_stage_that_pads_costs_what_its_next_size_costs() -> None:
    stage = StageTime(constant=1, linear=0.1, quadratic=0, sizes=(10, 20, 40))
    np.testing.assert_allclose(stage.at([1, 10, 11, 20, 21, 40]), [2, 2, 3, 3, 5, 5])


def test_a_run_is_the_sum_of_its_stages_and_of_what_is_around_them() -> None:
    first, second = (StageTime(constant=1, linear=part, quadratic=0) for part in (0.1, 0.2))
    assert model_of(first, second, outside_ms=0.5).milliseconds((10, 5)) == pytest.approx(0.5 + 2 + 2)
