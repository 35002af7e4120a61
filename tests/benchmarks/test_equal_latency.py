"""Between measured points only."""

from __future__ import annotations

import pytest
from equal_latency import Point, at_latency

POINTS = [Point(1.0, 60.0), Point(0.4, 50.0), Point(0.6, 58.0)]


@pytest.mark.parametrize(
    ("latency", "miou"), [(1.0, 60.0), (0.8, 59.0), (0.6, 58.0), (0.5, 54.0), (0.4, 50.0), (0.39, None), (1.01, None)]
)
def test_between_neighbours_and_never_beyond(latency, miou) -> None:
    found = at_latency(POINTS, latency)
    assert found is None if miou is None else found == pytest.approx(miou)


def test_one_point_says_nothing_about_others() -> None:
    assert at_latency([], 0.5) is None
    assert at_latency([Point(1.0, 60.0)], 0.9) is None
