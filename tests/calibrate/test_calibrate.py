"""Calibration on a session whose gates are a formula, so that the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.calibrate.budgets import DisagreeBudget, DropBudget, FlopsBudget, LatencyBudget
from dovit_deploy.calibrate.calibrate import calibrate
from dovit_deploy.calibrate.images import halves, neighbours
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.errors import CheckError, DatasetError, UsageError
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.runtime.latency import StageTime
from dovit_deploy.runtime.segmentation import Predictor
from tests.calibrate.fake_gated import FormulaImages, GatedSession, Steps
from tests.runtime.test_latency import model_of


def run(budget, *, session=None, steps=None, **images):
    session = session or GatedSession()
    return calibrate(session, FormulaImages(session, **images), budget, progress=steps or Steps())


def real(session, thresholds, indices) -> tuple[float, float]:
    """FLOPs saved and share of differing pixels, run again by hand."""
    images, predictor = FormulaImages(session, count=40), Predictor(session)
    saved, differing = [], []
    for index in indices:
        rgb = images.image(index).rgb
        result = predictor.predict(rgb, thresholds=thresholds)
        saved.append(result.tokens.flops_saved)
        differing.append(np.mean(result.class_map != predictor.predict(rgb, dense=True).class_map))
    return float(np.mean(saved)), float(np.mean(differing))


def test_a_drop_budget_finds_where_harm_begins() -> None:
    """Tokens that stop above a confidence of 0.5 come out right: both thresholds must come down to about there."""
    result = run(DropBudget(1.0), count=40)
    assert result.chosen.drop_interval.high <= 1.0
    assert result.chosen_on_all.drop_interval.high <= 1.0
    assert 0.42 <= result.thresholds[0][0] <= 0.6
    assert result.chosen.flops_saved > 0.15
    held_out = [int(stem[-3:]) for part in result.parts if part.part == "check" for stem in part.images]
    saved, differing = real(GatedSession(), [row[0] for row in result.thresholds], held_out)
    assert saved == pytest.approx(result.chosen.flops_saved)
    assert differing == pytest.approx(result.chosen.differing)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3])
def test_a_flops_budget_is_met_and_not_wasted(fraction: float) -> None:
    result = run(FlopsBudget(fraction), count=20, labelled=False)
    assert fraction <= result.chosen.flops_saved <= fraction + 0.1
    assert result.chosen_on_all.flops_saved >= fraction
    assert result.chosen.miou is None


def test_a_latency_budget_is_met_and_not_wasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """7.5 ms with nothing stopped, 2.7 ms with everything."""
    session = GatedSession()
    monkeypatch.setattr("dovit_deploy.runtime.segmentation.perf_counter", lambda: session.now)
    result = run(LatencyBudget(5.0), session=session, count=20, labelled=False)
    assert 4.5 <= result.chosen.model_ms <= 5.0
    with pytest.raises(CheckError, match="2 ms"):
        run(LatencyBudget(2.0), session=session, count=20, labelled=False)


def test_a_latency_budget_is_judged_by_a_model_and_every_setting_runs_once() -> None:
    # What the formula takes; a patch is one token of each stage.
    stage = StageTime(constant=0, linear=0.1, quadratic=0)
    spec = GatedSession().bundle.manifest.spec
    budget = LatencyBudget(5.0).by(model_of(*[stage] * 3), spec)
    assert (budget.repeat, LatencyBudget(5.0).repeat) == (1, 3)
    result = run(budget, count=20, labelled=False)
    assert 4.5 <= result.chosen.judged <= 5.0
    assert result.chosen.judged == pytest.approx(0.1 * sum(result.chosen.kept), rel=0.1)
    assert result.budget.text.endswith("5 ms on this machine, by a latency model that is 0.0% wrong (median)")
    with pytest.raises(CheckError, match=r"at most 2 ms .*: not reached even if .* takes 2\.7 ms") as refused:
        LatencyBudget(2.0).by(model_of(*[stage] * 3), spec)
    assert "by the latency model of 2026-11-30; dovit cache prune --all" in str(refused.value)


def test_a_disagree_budget_is_a_bound_on_held_out_images() -> None:
    result = run(DisagreeBudget(0.2, 0.9), count=60, labelled=False)
    assert result.chosen.differing <= result.chosen.judged <= 0.2
    assert result.chosen.flops_saved > 0.2
    assert not result.classes and {entry.miou for entry in result.held_out} == {None}


def test_parts_do_not_overlap_and_every_run_is_written_down() -> None:
    steps = Steps()
    result = run(DropBudget(1.0), steps=steps, count=40)
    search, check, whole = (set(part.images) for part in result.parts)
    assert not search & check
    assert search | check == whole
    assert result.passes == sum(point.part != "all" for point in result.measured) + 2
    assert steps.steps[0] == f"recording {len(search)} images" and "checking on" in steps.steps[-1]
    assert steps.images >= 2 * len(whole)
    assert result.chosen in result.measured
    assert len(result.curve) > 5
    assert [entry.image for entry in result.held_out] == list(result.parts[1].images)
    assert np.mean([entry.differing for entry in result.held_out]) == pytest.approx(result.chosen.differing)
    for way, miou in (("dense", result.parts[1].dense_miou), ("chosen", result.chosen.miou)):
        known = [getattr(entry, way) for entry in result.classes if getattr(entry, way) is not None]
        assert np.mean(known) == pytest.approx(miou)
    assert run(DropBudget(1.0), count=40).thresholds == result.thresholds


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        (FlopsBudget(0.95), "95.0%"),
        (DisagreeBudget(0.001, 0.95), "2995 held-out images, .* 20 images given"),
    ],
)
def test_a_budget_out_of_reach(budget, word: str) -> None:
    with pytest.raises(CheckError, match=word):
        run(budget, count=20, labelled=False)


def test_a_model_where_every_stop_hurts() -> None:
    with pytest.raises(CheckError, match="mIoU drop at most"):
        run(DropBudget(0.01), session=GatedSession(wrong_below=1.1), count=20)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(DatasetError, match="--max-disagree"):
        run(DropBudget(1.0), labelled=False)
    with pytest.raises(UsageError, match="without gates"):
        run(FlopsBudget(0.3), session=GatedSession(gates=()))
    with pytest.raises(DatasetError, match="3 images"):
        run(FlopsBudget(0.3), count=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DropBudget(0.0),
        lambda: DropBudget(float("nan")),
        lambda: FlopsBudget(1.0),
        lambda: FlopsBudget(-0.1),
        lambda: LatencyBudget(0.0),
        lambda: DisagreeBudget(0.0, 0.9),
        lambda: DisagreeBudget(0.1, 1.0),
        lambda: DisagreeBudget(0.1, 0.2),
    ],
)
def test_limits_out_of_range(make) -> None:
    with pytest.raises(UsageError, match="needed"):
        make()


# Search and check part: every image in one of them, neighbours together.


@settings(max_examples=30, derandomize=True)
@given(st.integers(5, 200), st.integers(0, 3))
def test_every_image_is_in_one_part_and_blocks_stay_whole(count: int, seed: int) -> None:
    blocks = neighbours(count)
    parts = halves(blocks, seed=seed)
    assert sorted((*parts.search, *parts.check)) == list(range(count))
    of = [{int(blocks.number[index]) for index in part} for part in (parts.search, parts.check)]
    assert not of[0] & of[1]
    assert min(len(part) for part in of) >= 2
    assert abs(len(of[0]) - len(of[1])) <= 1


def test_the_seed_decides() -> None:
    blocks = neighbours(100)
    assert halves(blocks, seed=1).search == halves(blocks, seed=1).search
    assert halves(blocks, seed=1).search != halves(blocks, seed=2).search


def test_a_short_clip_is_divided_though_it_has_no_interval() -> None:
    clip = blocks_of(100, [Moment("drive", number / 15) for number in range(100)])
    assert clip.count == 1
    parts = halves(clip, seed=0)
    assert len(parts.search) == len(parts.check) == 50
    assert halves(neighbours(100), seed=0) == parts


def test_without_an_interval_the_drop_itself_is_judged() -> None:
    """Seven blocks held out have none; the drop that is then within the limit would not be by its upper end."""
    session = GatedSession()
    images = FormulaImages(session, count=40)
    images.blocks = Blocks(np.arange(40) // 3)
    result = calibrate(session, images, DropBudget(1.0), progress=Steps())
    assert result.chosen.drop_interval is None
    assert result.chosen.judged == result.chosen.drop <= 1.0
    # All images together have fourteen.
    assert result.chosen_on_all.drop_interval.high == result.chosen_on_all.judged
    assert "the drop itself" in result.budget.text


def test_too_few_images() -> None:
    with pytest.raises(DatasetError, match="3 images"):
        halves(neighbours(3), seed=0)
