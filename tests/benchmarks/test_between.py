"""Frames that do not run: vectors of a codec point back to where pixels were, and steps count from the first frame."""

from __future__ import annotations

import cv2
import numpy as np
from between import filled, vectors_of, ways


def test_vectors_point_to_where_pixels_were():
    noise = np.random.default_rng(0).normal(size=(128, 192, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    rgb = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    frames = [np.roll(rgb, (-4 * number, 8 * number), axis=(0, 1)) for number in range(3)]
    first, *later = vectors_of(frames)
    assert not first.any()
    for flow in later:
        assert np.median(flow[32:-32, 32:-32], axis=(0, 1)).tolist() == [-8, 4]


def test_each_way_begins_anew_at_a_frame_that_runs():
    own = [np.full((64, 64), number, np.uint8) for number in range(5)]
    frames = [np.zeros((64, 64, 3), np.uint8)] * 5
    vectors = [np.zeros((64, 64, 2), np.float32)] * 5
    for name, fill in ways(frames, vectors, 2, own):
        maps, ms = filled(own, 2, fill)
        assert [int(one[0, 0]) for one in maps] == [0, 0, 2, 2, 4], name
        assert ms >= 0
