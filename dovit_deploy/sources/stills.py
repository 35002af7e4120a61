"""Which frames of a video repeat the one before, bit for bit? Screen recordings and paused clips are full of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from time import perf_counter

import numpy as np

from dovit_deploy.sources.source import RGB, FailedFrame, Frame

COMPARED_TOGETHER = 1 << 16
"""Bytes: the first ones that differ end the comparison, and in a moving video that is at once."""


def with_stills_marked(frames: Iterable[Frame | FailedFrame]) -> Iterator[Frame | FailedFrame]:
    """The same frames; `still` where one equals the frame given before it. The comparison is counted as decoding."""
    before: RGB | None = None
    for frame in frames:
        if isinstance(frame, FailedFrame):
            before = None
            yield frame
            continue
        start = perf_counter()
        still = before is not None and equal_pixels(frame.rgb, before)
        compared_ms = 1e3 * (perf_counter() - start)
        before = frame.rgb
        yield replace(frame, still=still, decode_ms=frame.decode_ms + compared_ms)


def equal_pixels(first: RGB, second: RGB) -> bool:
    """Whether two images have the same shape and the same bytes."""
    if first.shape != second.shape:
        return False
    # Without a copy where images are contiguous, and decoders give none that are not.
    one, other = (np.ascontiguousarray(image).reshape(-1) for image in (first, second))
    # Eight bytes at a time; the rest, fewer than eight, first.
    whole = one.size // 8 * 8
    if not np.array_equal(one[whole:], other[whole:]):
        return False
    one, other = one[:whole].view(np.uint64), other[:whole].view(np.uint64)
    step = COMPARED_TOGETHER // 8
    parts = (slice(start, start + step) for start in range(0, len(one), step))
    return all(np.array_equal(one[part], other[part]) for part in parts)
