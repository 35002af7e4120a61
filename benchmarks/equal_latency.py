"""What an alternative reaches in a given time: between its measured neighbours, never beyond them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A measured way of an alternative."""

    latency: float
    """Of the model step, as a multiple of the dense run's."""
    miou: float
    """Percent."""


def at_latency(points: Sequence[Point], latency: float) -> float | None:
    """mIoU at `latency`, linear between the two nearest `points` around it; None outside of all of them."""
    ordered = sorted(points)
    for point in ordered:
        if point.latency == latency:
            return point.miou
    for left, right in itertools.pairwise(ordered):
        if left.latency < latency < right.latency:
            share = (latency - left.latency) / (right.latency - left.latency)
            return left.miou + share * (right.miou - left.miou)
    return None
