"""What is promised of the share of differing pixels is tested on units that nothing else has seen, and often true."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.betting import best_bet, p_value
from dovit_deploy.bundle.calibration import SequenceStep
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.calibrate import calibrate
from dovit_deploy.calibrate.promise import Promise
from dovit_deploy.calibrate.units import Units
from dovit_deploy.errors import CheckError, UsageError
from dovit_deploy.measure.intervals import Blocks, blocks_of
from tests.calibrate.fake_gated import FormulaImages, GatedSession, Steps


def images(count: int) -> Units:
    return Units("image", "user", blocks_of(count, None))


def point(p: float, *, saved: float = 0.2) -> SequenceStep:
    return SequenceStep(
        thresholds=(p,), flops_saved=saved, differing=0.01, bet=1.0, p_value=p, bound=0.02, shown=p <= 0.05
    )


def test_the_least_number_is_kept_for_the_test_and_two_thirds_where_there_are_more() -> None:
    budget = DisagreeBudget(0.02, 0.95)
    for count, searched in ((151, 2), (200, 51), (600, 200)):
        parts = Promise(budget, images(count)).parts(seed=0)
        assert (len(parts.search), len(parts.check)) == (searched, count - searched)
    with pytest.raises(CheckError, match=r"149 held-out images, .* and 2 more for the search; 150 images given"):
        Promise(budget, images(150)).parts(seed=0)


def test_units_are_counted_not_images() -> None:
    """A thousand frames of a hundred blocks."""
    blocks = Blocks(np.arange(1000) // 10, 10.0)
    with pytest.raises(CheckError, match=r"149 held-out blocks of 10 s.*100 blocks of 10 s given.*--unit image"):
        Promise(DisagreeBudget(0.02, 0.95), Units("block", "data set", blocks)).parts(seed=0)
    parts = Promise(DisagreeBudget(0.05, 0.95), Units("block", "data set", blocks)).parts(seed=0)
    assert len(parts.search) % 10 == 0 and {index // 10 for index in parts.search}.isdisjoint(
        index // 10 for index in parts.check
    )


def test_the_sequence_ends_at_the_first_that_is_not_shown() -> None:
    promise = Promise(DisagreeBudget(0.02, 0.95), images(300))
    test = promise.test([point(0.01), point(0.03), point(0.2), point(0.001)], searched=100)
    assert (test.boldest, test.stopped_at, len(test.sequence), test.units) == (1, 2, 3, 200)
    assert promise.test([point(0.01)], searched=100).stopped_at is None
    # A setting that is shown and saves nothing is no answer.
    assert promise.test([point(0.2), point(0.01)], searched=100) is None
    assert promise.test([point(0.01, saved=0.0)], searched=100) is None


def test_frames_that_nobody_calls_independent_are_refused() -> None:
    drive = np.convolve(np.random.default_rng(0).beta(1, 50, 220), np.ones(20) / 20, mode="valid").tolist()
    for said_by in ("user", "data set"):
        Promise(DisagreeBudget(0.02, 0.95), Units("image", said_by, blocks_of(201, None))).refuse_frames(drive)
    with pytest.raises(UsageError, match="--frame-rate HZ"):
        Promise(DisagreeBudget(0.02, 0.95), Units("image", "nobody", blocks_of(201, None))).refuse_frames(drive)


def test_a_calibration_tests_what_the_search_did_not_see() -> None:
    """The bet comes from the images of the search, the p-value from the others alone; the choice follows from both."""
    session = GatedSession()
    formula, budget = FormulaImages(session, count=36, labelled=False), DisagreeBudget(0.2, 0.9)
    result = calibrate(session, formula, budget, progress=Steps(), units=images(36))
    test = result.test
    assert (test.units_searched, test.units, test.least_units) == (12, 24, 11)
    assert test.sequence[test.boldest].thresholds == result.chosen.thresholds
    assert result.chosen.judged == pytest.approx(test.sequence[test.boldest].bound) and result.chosen.judged <= 0.2
    losses = {name: losses_of(result, name, test.sequence[0].thresholds) for name in ("search", "check")}
    bet = best_bet(losses["search"], limit=0.2)
    assert test.sequence[0].bet == pytest.approx(bet)
    drawn = np.random.default_rng(0).permutation(losses["check"])
    assert test.sequence[0].p_value == pytest.approx(p_value(drawn, limit=0.2, bet=bet))


def losses_of(result, part: str, thresholds: tuple[float, ...]) -> np.ndarray:
    """The share of differing pixels of each image of a part, run again by hand."""
    from dovit_deploy.runtime.segmentation import Predictor

    predictor, formula = Predictor(GatedSession()), FormulaImages(GatedSession(), count=60)
    (stems,) = (entry.images for entry in result.parts if entry.part == part)
    losses = []
    for stem in stems:
        rgb = formula.image(int(stem[-3:])).rgb
        answers = (predictor.predict(rgb, thresholds=thresholds), predictor.predict(rgb, dense=True))
        losses.append(np.mean(answers[0].class_map != answers[1].class_map))
    return np.array(losses)


def test_blocks_are_judged_by_their_mean() -> None:
    session, blocks = GatedSession(), Blocks(np.arange(30) // 2, 10.0)
    formula = FormulaImages(session, count=30, labelled=False)
    result = calibrate(
        session, formula, DisagreeBudget(0.3, 0.8), progress=Steps(), units=Units("block", "data set", blocks)
    )
    assert (result.test.unit, result.test.units_searched, result.test.units) == ("block", 5, 10)
    step = result.test.sequence[0]
    by_image = losses_of(result, "check", step.thresholds)
    assert len(by_image) == 20
    assert step.differing == pytest.approx(by_image.reshape(10, 2).mean(axis=1).mean())
    bet = best_bet(losses_of(result, "search", step.thresholds).reshape(5, 2).mean(axis=1), limit=0.3)
    drawn = np.random.default_rng(0).permutation(by_image.reshape(10, 2).mean(axis=1))
    assert step.p_value == pytest.approx(p_value(drawn, limit=0.3, bet=bet))
