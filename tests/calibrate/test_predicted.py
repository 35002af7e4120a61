"""Predictions from a recording, held to real runs where they are exact and to plain loops elsewhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.calibrate.predicted import Recording, RecordingSession, Surrogate, class_histogram
from dovit_deploy.errors import UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.calibrate.fake_gated import FormulaImages, GatedSession


def recorded(session, images) -> Recording:
    recorder = RecordingSession(session)
    for index in range(len(images.stems)):
        Predictor(recorder).predict(images.image(index).rgb)
    return recorder.recording


@pytest.fixture(scope="module")
def formula() -> tuple[GatedSession, Recording]:
    session = GatedSession()
    return session, recorded(session, FormulaImages(session, count=4))


@pytest.mark.parametrize("thresholds", [(1.0, 1.0), (0.0, 0.0), (0.9, 0.4), (0.3, 0.8)])
def test_where_confidences_do_not_move_the_prediction_is_exact(formula, thresholds) -> None:
    session, recording = formula
    images = FormulaImages(session, count=4)
    saved, wrong = [], np.zeros((2, 2))
    for index in range(4):
        image = images.image(index)
        result = Predictor(session).predict(image.rgb, thresholds=thresholds)
        saved.append(result.tokens.flops_saved)
        for true in (0, 1):
            wrong[true] += (result.class_map[image.label == true] == 2).sum(), (image.label == true).sum()
    predicted = Surrogate(recording, floor=0.0).predict(thresholds)
    assert predicted.flops_saved == pytest.approx(np.mean(saved), abs=1e-9)
    # Class maps are interpolated between tokens, so single pixels at the edge of a token may fall either way.
    assert predicted.risk == pytest.approx((wrong[:, 0] / wrong[:, 1]).mean(), abs=0.08)


def test_the_floor_stops_too(formula) -> None:
    _, recording = formula
    assert Surrogate(recording, floor=0.3).predict([1.0, 1.0]).flops_saved > 0.05
    assert Surrogate(recording, floor=0.0).predict([1.0, 1.0]).flops_saved < 0


def test_the_curve_rises_in_both_and_is_not_beaten_by_a_grid(formula) -> None:
    surrogate = Surrogate(formula[1], floor=0.0)
    curve = surrogate.curve()
    for before, after in itertools.pairwise(curve):
        assert before.predicted.flops_saved < after.predicted.flops_saved
        assert before.predicted.risk <= after.predicted.risk
    assert curve[0].predicted.risk == 0
    # No risk below a confidence of 0.5 here: the best harmless setting must be on the curve.
    harmless = max(point.predicted.flops_saved for point in curve if point.predicted.risk == 0)
    grid = [surrogate.predict(pair) for pair in itertools.product(np.linspace(0, 1, 21), repeat=2)]
    assert harmless >= max(answer.flops_saved for answer in grid if answer.risk == 0) - 0.03


def test_neighbours_are_one_level_away(formula) -> None:
    surrogate = Surrogate(formula[1], floor=0.0)
    own = [float(levels[5]) for levels in surrogate.levels]
    found = surrogate.neighbours(own)
    assert len(found) == 6
    moves = [
        [int(np.abs(level - v).argmin()) - 5 for level, v in zip(surrogate.levels, p.thresholds, strict=True)]
        for p in found
    ]
    assert sorted(moves) == [[-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0]]


def test_a_model_without_gates(dense_bundle_path: Path) -> None:
    spec = Bundle.open(dense_bundle_path).manifest.spec
    with pytest.raises(UsageError, match="without gates"):
        Surrogate(Recording(spec), floor=0.0)


def test_histogram_counts_the_padded_border_short() -> None:
    spec = GatedSession().bundle.manifest.spec.model_copy(update={"size": (40, 96)})
    answer = np.zeros((40, 96), np.uint8)
    answer[0, 0] = 2
    counted = class_histogram(answer, spec)
    assert counted.sum() == 40 * 96
    assert counted[0].tolist() == [255, 0, 1]
    assert counted[-1].tolist() == [8 * 16, 0, 0]


def test_histogram_of_a_model_that_pads_all_sides_begins_inside_the_first_patch() -> None:
    spec = GatedSession().bundle.manifest.spec.model_copy(update={"size": (40, 96), "padding": "centre"})
    counted = class_histogram(np.zeros((40, 96), np.uint8), spec)
    assert counted[[0, -1]].tolist() == [[12 * 16, 0, 0]] * 2


def test_on_a_real_bundle_the_first_gate_and_the_ends_are_exact(tiny_bundle_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (56, 72, 3)).astype(np.uint8)
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        recorder = RecordingSession(session)
        answer = Predictor(recorder).predict(rgb).class_map
        predictor = Predictor(session)
        assert (answer == predictor.predict(rgb, dense=True).class_map).all()
        surrogate = Surrogate(recorder.recording, floor=0.0)
        for thresholds in ([1.0, 1.0], [0.0, 0.0], [0.6, 1.0]):
            report = predictor.predict(rgb, thresholds=thresholds).tokens
            assert surrogate.predict(thresholds).flops_saved == pytest.approx(report.flops_saved, abs=1e-9)
            cost = cost_model(session.bundle.manifest.spec)
            assert cost.actual(report.kept).total / 1e9 == pytest.approx(report.gmacs_actual)
