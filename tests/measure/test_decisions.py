"""Controls made of decisions on other images: against references token by token, and at the rule's counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.controls import CONTROLS, ELSEWHERE, Steering, ordered_keep
from dovit_deploy.measure.decisions import Decisions, StopMap, WindowDecisions, decisions_of, partners_of
from dovit_deploy.measure.evaluate import EvalPlan, SegmentationTally, evaluate
from dovit_deploy.measure.intervals import blocks_of
from dovit_deploy.measure.report import segmentation_report
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings, index_from_keep
from tests.datasets.labelled_folder import write_labelled
from tests.fakes import report_from_keep
from tests.tiny import tiny_spec

SPEC = tiny_spec(gates=(1, 2, 3))
GATES = len(SPEC.gates)


def drawn(seed: int) -> WindowDecisions:
    """Decisions of a rule with few different confidences, so that there are ties."""
    rng = np.random.default_rng(seed)
    running, keep, confidence = np.ones(SPEC.grid, bool), [], []
    for _ in range(GATES):
        judged = rng.integers(0, 4, SPEC.grid).astype(np.float32) / 4
        confidence.append(np.where(running, judged, np.nan).astype(np.float32))
        running = running & (judged < 0.7)
        keep.append(running)
    return WindowDecisions.of(replace(report_from_keep(*keep), confidence=tuple(confidence)))


def naive_order(decisions: WindowDecisions, confidence) -> list[int]:
    ranked = []
    for patch in range(SPEC.patches):
        passed = sum(bool(row[patch]) for row in decisions.running)
        judged = [float(row[patch]) for row in confidence if not np.isnan(row[patch])]
        ranked.append((-passed, judged[-1], patch))
    return [patch for _, _, patch in sorted(ranked)]


@pytest.mark.parametrize("seed", range(5))
def test_who_ran_longest_comes_first_and_of_equals_the_less_confident(seed):
    rng = np.random.default_rng([seed, 1])
    running, keep, confidence = np.ones(SPEC.grid, bool), [], []
    for _ in range(GATES):
        judged = rng.integers(0, 4, SPEC.grid).astype(np.float32) / 4
        confidence.append(np.where(running, judged, np.nan).astype(np.float32))
        running = running & (judged < 0.7)
        keep.append(running)
    decisions = WindowDecisions.of(replace(report_from_keep(*keep), confidence=tuple(confidence)))
    np.testing.assert_array_equal(decisions.running, [grid.ravel() for grid in keep])
    assert decisions.order.tolist() == naive_order(decisions, [grid.ravel() for grid in confidence])


def naive_position_keep(images: list[WindowDecisions], kept: list[int]) -> list[list[int]]:
    """Which patches run after each gate, by the mean of the decisions on `images`."""
    running, after = list(range(SPEC.patches)), []
    for gate in range(GATES):
        ranked = []
        for patch in running:
            here = sum(bool(image.running[gate][patch]) for image in images)
            ever = sum(bool(row[patch]) for image in images for row in image.running)
            ranked.append((-here, -ever, patch))
        count = kept[gate + 1] - SPEC.extra_tokens
        running = sorted(patch for _, _, patch in sorted(ranked)[:count])
        after.append(running)
    return after


COUNTS = st.lists(st.integers(0, SPEC.patches), min_size=GATES, max_size=GATES)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 1000))
def test_position_and_other_stop_as_many_as_the_rule_and_as_the_references_do(counts, seed):
    kept = [SPEC.tokens, *(SPEC.extra_tokens + count for count in sorted(counts, reverse=True))]
    images = [drawn(seed + number) for number in range(5)]
    stop_map = StopMap("drawn")
    for image in images:
        stop_map.add((image,))
    decisions = Decisions(tuple((image,) for image in images), partners_of([0, 1, 2, 3, 4]), stop_map, own=True)
    by_position = ordered_keep(kept, SPEC, decisions.by_position(1, 0))
    rest = [image for number, image in enumerate(images) if number != 1]
    assert [np.flatnonzero(grid).tolist() for grid in by_position] == naive_position_keep(rest, kept)
    order = decisions.of_other(1, 0)
    as_other = ordered_keep(kept, SPEC, [order] * GATES)
    for gate, grid in enumerate(as_other):
        assert set(np.flatnonzero(grid)) == set(images[3].order[: kept[gate + 1] - SPEC.extra_tokens].tolist())
    for keep in (by_position, as_other):
        assert [len(entry) for entry in index_from_keep(keep, SPEC)] == kept[1:]


def test_a_map_of_other_images_counts_all_of_them():
    images = [drawn(number) for number in range(4)]
    stop_map = StopMap("drawn")
    for image in images[:3]:
        stop_map.add((image,))
    decisions = Decisions(((images[3],),), (None,), stop_map, own=False)
    kept = [SPEC.tokens, *[SPEC.extra_tokens + SPEC.patches // 2] * GATES]
    keep = ordered_keep(kept, SPEC, decisions.by_position(0, 0))
    assert [np.flatnonzero(grid).tolist() for grid in keep] == naive_position_keep(images[:3], kept)
    assert decisions.available == ("position",)
    assert replace(decisions, own=True).available == ()


def test_windows_have_maps_of_their_own_and_the_last_stands_for_more():
    one, two = drawn(1), drawn(2)
    stop_map = StopMap("drawn")
    stop_map.add((one, two))
    stop_map.add((one,))
    first, second, third = (np.array(stop_map.orders(window)) for window in range(3))
    assert (first != second).any()
    np.testing.assert_array_equal(second, third)
    # Without the only image that had a second window every patch is equal there, and raster order is left.
    np.testing.assert_array_equal(stop_map.orders(1, without=(one, two)), [np.arange(SPEC.patches)] * GATES)


def test_partners_are_far_away_and_of_another_block():
    assert partners_of([0, 0, 1, 1, 2, 2]) == (3, 4, 5, 0, 1, 2)
    # Half the set away lies in the same block: the next image of another one.
    assert partners_of([0, 1, 1, 1, 1, 1]) == (3, 0, 0, 0, 0, 0)
    assert partners_of([0] * 4) == (2, 3, 0, 1)
    assert partners_of([0]) == (None,)
    for number in range(2, 30):
        blocks = (np.arange(number) // 3).tolist()
        for image, partner in enumerate(partners_of(blocks)):
            assert partner != image and (blocks[partner] != blocks[image] or max(blocks) == 0)


# On graphs.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_labelled(tmp_path_factory.mktemp("data") / "set", images=8), "val")


@pytest.mark.parametrize("fixture", ["tiny_bundle_path", "setr_bundle_path"])
def test_on_graphs_they_cost_what_the_rule_costs_and_the_report_has_their_gain(request, fixture, data):
    with Session(Bundle.open(request.getfixturevalue(fixture)), threads=1) as session:
        plan = EvalPlan("set", "val", RunSettings.resolve(session.bundle.manifest), CONTROLS)
        measured = evaluate(session, data, SegmentationTally, plan, advance=lambda saved: None)
        report = segmentation_report(measured, session, plan)
    rule = measured.dynamic
    for name in ELSEWHERE:
        assert measured.controls[name].kept == rule.kept
        control = getattr(report.controls, name)
        assert control.gmacs == report.dynamic.gmacs
        assert control.rule_gain == pytest.approx(rule.score - measured.controls[name].score)
        assert control.rule_gain_interval[0] <= control.rule_gain <= control.rule_gain_interval[1]
    assert (report.controls.position_images, report.controls.position_from) == (8, data.name)


def test_position_is_blind_to_the_image(tiny_bundle_path, data):
    """By a map of other images, images with the same counts get the same decisions, whatever they show."""
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        settings_ = RunSettings.resolve(session.bundle.manifest)
        blocks = blocks_of(len(data), None)
        decisions = decisions_of(session, data, settings_, blocks, source=data)
        tokens = Predictor(session).run(data.sample(0).rgb, settings_).tokens
        steering = Steering(session, decisions)
        found = [steering.position(data.sample(number).rgb, tokens, number=number) for number in (0, 3)]
        others = [steering.other(data.sample(number).rgb, tokens, number=number) for number in (0, 3)]
    grids = [[grid.tolist() for grid in result.tokens.windows[0].report.keep] for result in (*found, *others)]
    assert grids[0] == grids[1]
    # Replayed from two other images.
    assert grids[2] != grids[3]
    assert found[0].tokens.kept == others[0].tokens.kept == tokens.kept


def test_one_image_has_no_other(tiny_bundle_path, tmp_path):
    alone = dataset_from_path(write_labelled(tmp_path / "set", images=1), "val")
    with Session(Bundle.open(tiny_bundle_path), threads=1) as session:
        plan = EvalPlan("set", "val", RunSettings.resolve(session.bundle.manifest), ELSEWHERE)
        measured = evaluate(session, alone, SegmentationTally, plan, advance=lambda saved: None)
    assert measured.controls == {} and measured.stop_map is None
