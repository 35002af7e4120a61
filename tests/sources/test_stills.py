"""Frames that repeat the one before: found to the last byte, and never one that differs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.sources.source import FailedFrame, Frame
from dovit_deploy.sources.stills import equal_pixels, with_stills_marked


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame(rgb: np.ndarray, index: int = 0) -> Frame:
    return Frame(rgb, index, "fake", Fraction(index), decode_ms=5.0)


@given(st.integers(1, 40), st.integers(1, 60), st.data())
@settings(max_examples=40, derandomize=True, deadline=None)
def test_one_byte_anywhere_makes_two_images_differ(height, width, data):
    rgb = drawn(height, width)
    other = rgb.copy()
    assert equal_pixels(rgb, other)
    other.reshape(-1)[data.draw(st.integers(0, rgb.size - 1))] ^= 1
    assert not equal_pixels(rgb, other)


@pytest.mark.parametrize("position", [0, 1 << 16, (1 << 16) - 1, -1])
def test_also_at_the_borders_of_what_is_compared_together(position):
    rgb = drawn(211, 213)
    other = rgb.copy()
    other.reshape(-1)[position] ^= 128
    assert not equal_pixels(rgb, other)


def test_the_same_bytes_in_another_shape_are_another_image():
    assert not equal_pixels(drawn(4, 6), drawn(4, 6).reshape(6, 4, 3))


def test_views_with_gaps_are_compared_as_what_they_show():
    rgb = drawn(16, 20)
    assert equal_pixels(rgb[:, ::-1], rgb[:, ::-1].copy())
    assert not equal_pixels(rgb[:, ::-1], rgb)


def test_frames_are_compared_with_the_one_before_alone():
    one, other = drawn(8, 8, 1), drawn(8, 8, 2)
    found = list(with_stills_marked(frame(rgb.copy(), n) for n, rgb in enumerate([one, one, other, one, one, one])))
    assert [item.still for item in found] == [False, True, False, False, True, True]
    # What comparing took is in no other figure.
    assert all(item.decode_ms >= 5.0 for item in found)
    assert [item.index for item in found] == list(range(6))


def test_nothing_repeats_a_frame_that_could_not_be_read():
    rgb = drawn(8, 8)
    found = list(with_stills_marked([frame(rgb), FailedFrame("x", "bad", 1), frame(rgb, 2)]))
    assert isinstance(found[1], FailedFrame) and not found[2].still
