"""The pixel arithmetic again, in the plainest NumPy and float64: what the fast forms are held against."""

from __future__ import annotations

import numpy as np


def interpolated(planes, size):
    """(K, h, w) -> (K, *size): bilinear, half-pixel centres, no antialiasing."""
    planes = np.asarray(planes, dtype=np.float64)
    for axis, target in ((1, size[0]), (2, size[1])):
        source = planes.shape[axis]
        outputs = []
        for number in range(target):
            position = min(max((number + 0.5) * source / target - 0.5, 0.0), source - 1.0)
            low = int(position)
            high = min(low + 1, source - 1)
            share = position - low
            outputs.append((1 - share) * planes.take(low, axis=axis) + share * planes.take(high, axis=axis))
        planes = np.stack(outputs, axis=axis)
    return planes


def stretched(logits, input_size, image_size, *, canvas):
    """Logits over the canvas, cut to the input, over the image: (K, *image_size) in float64."""
    at_input = interpolated(logits, canvas)[:, : input_size[0], : input_size[1]]
    return interpolated(at_input, image_size)


def assert_is_argmax(class_map, planes, *, within=1e-5):
    """`class_map` is the argmax of `planes` wherever the best is ahead by `within` of the largest value."""
    winner = planes.argmax(axis=0)
    chosen = np.take_along_axis(planes, class_map[None].astype(np.intp), axis=0)[0]
    behind = planes.max(axis=0) - chosen
    assert class_map.dtype == np.uint8 and class_map.shape == winner.shape
    wrong = behind > within * max(1.0, np.abs(planes).max())
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} pixels, behind by up to {behind.max()}"
