"""From a predicted curve to one setting by few real runs: along the curve, around its border, on held-out images.

The curve goes from cautious to bold. An accuracy budget is met along its first part, a cost budget along its last;
the border between the parts is found by running a few settings at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.calibration import CurvePoint

AT_ONCE = 3
"""Settings run together: they share decoding, and what else the machine does falls on all of them."""
NEIGHBOURS = 4
"""Settings around the border that are really run."""
STEPS = 8
"""Settings at most that are run on the held-out images."""
CAUTIOUS, CLOSE = 2, 3
"""Among them: at least so many up to the setting that the search is certain of, and so many just behind it."""


@dataclass(frozen=True)
class Judged:
    """A setting that was really run."""

    point: CurvePoint
    met: bool
    """As far as these images show."""
    certain: bool
    """As the budget requires it: by the end of an interval or bound, where it has one."""
    flops_saved: float
    harm: float
    """Accuracy lost: points of mIoU, or the share of differing pixels without labels; the less the better."""


Measure = Callable[[Sequence[CurvePoint]], list[Judged]]


def border(curve: Sequence[CurvePoint], measure: Measure, *, limits_cost: bool, certain: bool = False) -> Judged | None:
    """The last setting of `curve` that meets an accuracy budget, or the first that meets a cost budget.

    None: not even the end where it should be met most easily meets it. `AT_ONCE` settings at a time are run between
    what is known to meet and what is known not to; where that is not monotone, one of the borders is found.
    `certain`: the border of what meets it by the end of its interval or bound.
    """
    # From the end where the budget is met most easily.
    order = list(reversed(curve)) if limits_cost else list(curve)
    good, bad = -1, len(order)
    best = None
    while bad - good > 1:
        tried = _between(good, bad)
        for number, result in zip(tried, measure([order[number] for number in tried]), strict=True):
            if not (result.certain if certain else result.met):
                bad = number
                break
            good, best = number, result
    return best


def _between(good: int, bad: int) -> list[int]:
    """Up to `AT_ONCE` numbers strictly between the two, evenly spread, rising."""
    gap = bad - good
    return sorted({good + max(1, round(gap * part / (AT_ONCE + 1))) for part in range(1, AT_ONCE + 1)} - {good, bad})


def refined(start: Judged, candidates: Sequence[CurvePoint], measure: Measure, *, limits_cost: bool) -> Judged:
    """The best of `start` and of a few of `candidates`, really run.

    Better is: met, and saving more (accuracy budget) or harming less (cost budget).
    """
    # Only neighbours that are predicted to be better are worth a run; the most promising come first.
    own = start.point.predicted
    if limits_cost:
        better = [point for point in candidates if point.predicted.risk < own.risk]
        better.sort(key=lambda point: -point.predicted.flops_saved)
    else:
        better = [point for point in candidates if point.predicted.flops_saved > own.flops_saved]
        better.sort(key=lambda point: point.predicted.risk)
    if not better:
        return start
    met = [start, *(result for result in measure(better[:NEIGHBOURS]) if result.met)]
    if limits_cost:
        return min(met, key=lambda result: result.harm)
    return max(met, key=lambda result: result.flops_saved)


def check_sequence(
    chosen: CurvePoint, certain: CurvePoint | None, curve: Sequence[CurvePoint], *, limits_cost: bool
) -> list[CurvePoint]:
    """Settings to run on held-out images, in the order in which they are tried.

    Accuracy budget: from cautious to `chosen`, closest around `certain`, where the answer is likely to lie; the last
    before the first failure holds (a fixed sequence of tests needs no correction for their number). Cost budget: from
    `chosen` on to bolder ones; the first that holds is taken.
    """
    own = chosen.predicted.flops_saved
    if limits_cost:
        rest = [point for point in curve if point.predicted.flops_saved > own]
        return [chosen, *_spread(rest, STEPS - 1)]
    # A setting that saves nothing need not be checked: it is no answer to an accuracy budget.
    below = [point for point in curve if 0 < point.predicted.flops_saved < own]
    if certain is None:
        return [*_spread(below, STEPS - 1), chosen]
    sure = certain.predicted.flops_saved
    before = [point for point in below if point.predicted.flops_saved <= sure]
    after = [point for point in below if point.predicted.flops_saved > sure]
    bold = [*after[:CLOSE], *_spread(after[CLOSE:], STEPS - 1 - CLOSE - CAUTIOUS)]
    return [*_spread(before, STEPS - 1 - len(bold)), *bold, chosen]


def _spread(points: Sequence[CurvePoint], count: int) -> list[CurvePoint]:
    """At most `count` of `points`, at least 2, evenly spread, the ends among them."""
    if len(points) <= count:
        return list(points)
    return [points[round(step * (len(points) - 1) / (count - 1))] for step in range(count)]


def accepted(judged: Sequence[Judged], *, limits_cost: bool) -> Judged | None:
    """The setting of `check_sequence` that holds after all were run on held-out images; None: none does."""
    if limits_cost:
        return next((result for result in judged if result.met), None)
    best = None
    for result in judged:
        # The first failure ends the sequence: a bolder setting that holds behind it would be luck.
        if not result.met:
            break
        best = result
    return best
