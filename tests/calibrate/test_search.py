"""The border of a budget along a curve, found with few runs; what is taken on held-out images."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.calibration import CurvePoint, Prediction
from dovit_deploy.calibrate.search import STEPS, Judged, accepted, border, check_sequence, refined


def point(saved: float, risk: float = 0.0) -> CurvePoint:
    return CurvePoint(thresholds=(1 - saved,), predicted=Prediction(flops_saved=saved, risk=risk))


CURVE = [point(number / 40, number / 40) for number in range(41)]


class Meter:
    """Judges a setting by `good` of its saving; remembers what was run."""

    def __init__(self, good, *, certain=lambda saved: True) -> None:
        self.good, self.certain, self.run = good, certain, []

    def __call__(self, points):
        self.run += points
        answers = [point.predicted for point in points]
        return [
            Judged(p, self.good(a.flops_saved), self.certain(a.flops_saved), a.flops_saved, a.risk)
            for p, a in zip(points, answers, strict=True)
        ]


@settings(max_examples=60, derandomize=True)
@given(st.floats(-0.1, 1.1), st.integers(1, 41))
def test_the_last_that_meets_an_accuracy_budget(limit: float, length: int) -> None:
    meter = Meter(lambda saved: saved <= limit)
    found = border(CURVE[:length], meter, limits_cost=False)
    wanted = [p for p in CURVE[:length] if p.predicted.flops_saved <= limit]
    assert (found and found.point) == (wanted[-1] if wanted else None)
    assert len(meter.run) <= 12
    assert len(set(meter.run)) == len(meter.run)


@settings(max_examples=60, derandomize=True)
@given(st.floats(-0.1, 1.1), st.integers(1, 41))
def test_the_first_that_meets_a_cost_budget(limit: float, length: int) -> None:
    meter = Meter(lambda saved: saved >= limit)
    found = border(CURVE[:length], meter, limits_cost=True)
    wanted = [p for p in CURVE[:length] if p.predicted.flops_saved >= limit]
    assert (found and found.point) == (wanted[0] if wanted else None)
    assert len(meter.run) <= 12


def test_a_neighbour_counts_only_when_it_is_really_better() -> None:
    start = Judged(point(0.5, 0.2), True, True, 0.5, 0.2)
    bolder, cautious = point(0.6, 0.3), point(0.4, 0.1)
    assert refined(start, [cautious, bolder], Meter(lambda saved: True), limits_cost=False).point == bolder
    assert refined(start, [cautious, bolder], Meter(lambda saved: False), limits_cost=False) == start
    assert refined(start, [cautious, bolder], Meter(lambda saved: True), limits_cost=True).point == cautious
    assert refined(start, [cautious], Meter(lambda saved: True), limits_cost=False) == start


def test_the_border_of_what_is_certain_lies_before_the_border_of_what_is_met() -> None:
    meter = Meter(lambda saved: saved <= 0.8, certain=lambda saved: saved <= 0.3)
    assert border(CURVE, meter, limits_cost=False, certain=True).point == CURVE[12]
    assert border(CURVE, meter, limits_cost=False).point == CURVE[32]


@pytest.mark.parametrize("certain", [None, CURVE[0], CURVE[10], CURVE[19], CURVE[20]])
def test_held_out_images_are_asked_in_a_fixed_order(certain: CurvePoint | None) -> None:
    cautious = check_sequence(CURVE[20], certain, CURVE, limits_cost=False)
    assert 4 <= len(cautious) <= STEPS
    assert len(set(cautious)) == len(cautious)
    if certain == CURVE[10]:
        assert [CURVE[number] in cautious for number in (10, 11, 12, 13)] == [True] * 4
    assert cautious[-1] == CURVE[20]
    assert [p.predicted.flops_saved for p in cautious] == sorted(p.predicted.flops_saved for p in cautious)
    assert cautious[0].predicted.flops_saved > 0
    bold = check_sequence(CURVE[20], None, CURVE, limits_cost=True)
    assert bold[0] == CURVE[20]
    assert bold[-1] == CURVE[-1]


def judged(*met: bool) -> list[Judged]:
    return [Judged(CURVE[number], good, good, number / 40, 0.0) for number, good in enumerate(met)]


def test_the_first_failure_ends_the_sequence_of_an_accuracy_budget() -> None:
    results = judged(True, True, False, True)
    assert accepted(results, limits_cost=False) == results[1]
    assert accepted(judged(False, True), limits_cost=False) is None


def test_the_first_success_of_a_cost_budget_is_taken() -> None:
    results = judged(False, True, False, True)
    assert accepted(results, limits_cost=True) == results[1]
    assert accepted(judged(False, False), limits_cost=True) is None
