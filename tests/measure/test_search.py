"""The border of a budget along a curve, found with few runs; what is taken on held-back images."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.calibration import CurvePoint, Prediction
from dovit_deploy.measure.search import STEPS, Judged, border, check_sequence, held, refined


def point(saved: float, risk: float = 0.0) -> CurvePoint:
    return CurvePoint(thresholds=(1 - saved,), predicted=Prediction(flops_saved=saved, risk=risk))


CURVE = [point(number / 40, number / 40) for number in range(41)]


class Meter:
    """Meets what `good` says of the saving; remembers what was run."""

    def __init__(self, good) -> None:
        self.good, self.run = good, []

    def __call__(self, points):
        self.run += points
        return [
            Judged(p, self.good(p.predicted.flops_saved), p.predicted.flops_saved, p.predicted.risk) for p in points
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
    start = Judged(point(0.5, 0.2), True, 0.5, 0.2)
    bolder, cautious = point(0.6, 0.3), point(0.4, 0.1)
    assert refined(start, [cautious, bolder], Meter(lambda saved: True), limits_cost=False).point == bolder
    assert refined(start, [cautious, bolder], Meter(lambda saved: False), limits_cost=False) == start
    assert refined(start, [cautious, bolder], Meter(lambda saved: True), limits_cost=True).point == cautious
    assert refined(start, [cautious], Meter(lambda saved: True), limits_cost=False) == start


def test_held_back_images_are_asked_in_a_fixed_order() -> None:
    cautious = check_sequence(CURVE[20], CURVE, limits_cost=False)
    assert len(cautious) == STEPS
    assert cautious[-1] == CURVE[20]
    assert [p.predicted.flops_saved for p in cautious] == sorted(p.predicted.flops_saved for p in cautious)
    assert cautious[0].predicted.flops_saved > 0
    bold = check_sequence(CURVE[20], CURVE, limits_cost=True)
    assert bold[0] == CURVE[20]
    assert bold[-1] == CURVE[-1]


def judged(*met: bool) -> list[Judged]:
    return [Judged(CURVE[number], good, number / 40, 0.0) for number, good in enumerate(met)]


def test_the_first_failure_ends_the_sequence_of_an_accuracy_budget() -> None:
    results = judged(True, True, False, True)
    assert held(results, limits_cost=False) == results[1]
    assert held(judged(False, True), limits_cost=False) is None


def test_the_first_success_of_a_cost_budget_is_taken() -> None:
    results = judged(False, True, False, True)
    assert held(results, limits_cost=True) == results[1]
    assert held(judged(False, False), limits_cost=True) is None
