"""Frames that were looked at before a run are still run, in order, with those that cannot be read."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from dovit_deploy.sources.ahead import FramesAhead
from dovit_deploy.sources.source import FailedFrame, Frame


def items(count: int) -> list[Frame | FailedFrame]:
    frames: list[Frame | FailedFrame] = [
        Frame(np.zeros((2, 2, 3), np.uint8), number, "fake", Fraction(number)) for number in range(count)
    ]
    frames[1] = FailedFrame("bad.png", "cannot be read", 1)
    return frames


def test_what_was_looked_at_comes_again_in_order() -> None:
    ahead = FramesAhead(items(6))
    assert [frame.index for frame in ahead.first(3)] == [0, 2]
    assert [item.index for item in ahead] == list(range(6))


def test_a_source_shorter_than_what_is_looked_at() -> None:
    ahead = FramesAhead(items(2))
    assert len(ahead.first(4)) == 1
    assert [item.index for item in ahead] == [0, 1]


def test_a_source_is_iterated_once() -> None:
    seen = []

    def source():
        for item in items(5):
            seen.append(item.index)
            yield item

    ahead = FramesAhead(source())
    ahead.first(2)
    assert seen == [0, 1]
    list(ahead)
    assert seen == [0, 1, 2, 3, 4]
