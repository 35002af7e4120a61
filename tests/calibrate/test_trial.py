"""Real runs of settings: what is written down of each image, and both parts together in the order of the images."""

from __future__ import annotations

import pytest

from dovit_deploy.calibrate.images import halves, neighbours
from dovit_deploy.calibrate.trial import Runner, joined_parts, joined_trials
from dovit_deploy.measure.metrics import ClassCounts
from tests.calibrate.fake_gated import FormulaImages, GatedSession, Steps

SETTINGS = [(0.2, 0.9), (0.8, 0.3), (1.0, 1.0)]


@pytest.fixture
def runner() -> Runner:
    session = GatedSession()
    return Runner(session, FormulaImages(session, count=20), repeat=1, progress=Steps())


def test_the_parts_together_are_the_whole(runner: Runner) -> None:
    blocks = runner.images.blocks
    parts = halves(blocks, seed=3)
    first, second = (runner.dense(part, blocks.of(part)) for part in (parts.search, parts.check))
    whole = runner.dense(range(20), blocks)
    joined = joined_parts(first, second, blocks, blocks)
    assert joined.indices == whole.indices
    assert joined.blocks == blocks
    for ours, theirs in zip(joined.counts, whole.counts, strict=True):
        assert (ours.hit == theirs.hit).all()
        assert (ours.predicted == theirs.predicted).all()
    pairs = zip(runner.run(first, SETTINGS), runner.run(second, SETTINGS), runner.run(whole, SETTINGS), strict=True)
    for one, other, together in pairs:
        both = joined_trials(one, first, other, second, blocks)
        assert both.thresholds == together.thresholds
        assert (both.differing, both.kept, both.gmacs) == (together.differing, together.kept, together.gmacs)
        assert both.flops_saved == together.flops_saved
        assert ClassCounts.stacked(both.counts).miou == ClassCounts.stacked(together.counts).miou


def test_nothing_stopped_differs_nowhere_and_costs_the_gates(runner: Runner) -> None:
    dense, recording = runner.record(range(4), neighbours(4))
    bold, _, idle = runner.run(dense, SETTINGS)
    assert idle.differing == [0.0] * 4
    assert idle.flops_saved < 0 < bold.flops_saved
    assert min(bold.differing) > 0
    assert len(recording.windows) == 4
    assert runner.passes == 4


def test_repeated_runs_are_timed_and_counted_once() -> None:
    session = GatedSession()
    runner = Runner(session, FormulaImages(session, count=5), repeat=3, progress=Steps())
    dense = runner.dense(range(5), neighbours(5))
    trial = runner.run(dense, SETTINGS)[0]
    assert len(trial.model_ms) == 15
    assert len(trial.kept) == len(trial.counts) == len(trial.differing) == 5
