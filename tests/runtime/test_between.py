"""Frames between those that run: which they are, and that a moved answer lies where the image has moved to."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.between import LONGER_SIDE, Between, Filling, Motion, fetched, refuse_unfit
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.sources.source import Frame
from tests.fakes import FakeSession, fake_manifest

HELD, WARPED = Between(3, "hold"), Between(3, "warp")


def texture(height: int = 120, width: int = 180, *, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 without a flat spot, so that its motion can be seen everywhere."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def frame(rgb: np.ndarray, number: int = 0) -> Frame:
    return Frame(rgb, number, "clip", Fraction(number, 25), decode_ms=2.0)


def answer(rgb: np.ndarray):
    return Predictor(FakeSession()).predict(rgb)


def test_the_first_frame_and_every_third_behind_it_run():
    filling, rgb = Filling(HELD), texture()
    ran = []
    for number in range(8):
        ran.append(filling.runs(frame(rgb, number)))
        if ran[-1]:
            filling.note(answer(rgb))
    assert ran == [True, False, False, True, False, False, True, False]


def test_a_frame_of_another_size_runs():
    filling = Filling(HELD)
    assert filling.runs(frame(texture()))
    filling.note(answer(texture()))
    assert not filling.runs(frame(texture())) and filling.runs(frame(texture(120, 182)))


def test_a_frame_behind_one_that_gave_no_answer_runs():
    filling = Filling(HELD)
    assert filling.runs(frame(texture())) and filling.runs(frame(texture()))


@pytest.mark.parametrize("between", [HELD, WARPED])
def test_what_is_filled_in_is_on_the_new_image_and_was_computed_by_no_model(between):
    filling, first, second = Filling(between), texture(), np.roll(texture(), 6, axis=1)
    filling.note(answer(first))
    filled = filling.filled(frame(second, 1))
    np.testing.assert_array_equal(filled.rgb, second)
    assert filled.tokens.filled == between.by and not filled.tokens.still and not filled.tokens.computed
    assert filled.tokens.gmacs_actual == 0 and filled.tokens.flops_saved == 1
    assert filled.tokens.kept == answer(first).tokens.kept
    timing = filled.timing
    assert (timing.decode, timing.preprocess, timing.model) == (2.0, 0.0, 0.0)
    assert (timing.postprocess > 0) == (between.by == "warp")
    same = (filled.class_map == answer(first).class_map).all()
    assert same == (between.by == "hold")


@pytest.mark.parametrize("width", [180, 3 * LONGER_SIDE])
@pytest.mark.parametrize("move", [(0, 6), (-5, 0), (3, -7)])
def test_a_map_moves_as_its_image_does(width, move):
    rgb = cv2.resize(texture(), (width, 2 * width // 3))
    scale = width / 180
    down, right = (round(scale * by) for by in move)
    classes = (rgb[..., 0] // 64).astype(np.uint8)
    later, expected = (np.roll(array, (down, right), (0, 1)) for array in (rgb, classes))
    moved = Motion(rgb, classes).follow(later)
    # What came in at the border was nowhere before.
    edge = round(12 * scale)
    inside = slice(edge, -edge), slice(edge, -edge)
    assert np.mean(moved[inside] == expected[inside]) > 0.97
    assert np.mean(classes[inside] == expected[inside]) < 0.8


def test_motion_goes_on_from_frame_to_frame_and_begins_anew_at_one_that_ran():
    rgb, other = texture(), texture(seed=1)
    classes = (rgb[..., 0] // 64).astype(np.uint8)
    motion = Motion(rgb, classes)
    for number in range(1, 7):
        later, expected = (np.roll(array, 4 * number, axis=1) for array in (rgb, classes))
        moved = motion.follow(later)[12:-12, 36:-12]
        assert np.mean(moved == expected[12:-12, 36:-12]) > 0.95
    filling = Filling(Between(9, "warp"))
    for first in (rgb, other):
        filling.note(answer(first))
        filling.filled(frame(first, 1))
        second = np.roll(first, 4, axis=1)
        moved = filling.filled(frame(second, 2)).class_map
        motion = Motion(first, answer(first).class_map)
        motion.follow(first)
        np.testing.assert_array_equal(moved, motion.follow(second))


def test_a_pixel_is_fetched_from_where_it_was():
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    flow = np.zeros((3, 4, 2), np.float32)
    flow[..., 0], flow[0, 0] = 1, (2, 2)
    assert fetched(classes, flow).tolist() == [[10, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    # A flow of half the size is of pixels twice as large.
    half = np.full((3, 4, 2), (0.5, 1.0), np.float32)
    large = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert fetched(large, half)[:4, :7].tolist() == large[2:, 1:].tolist()


def test_an_image_too_small_to_move_keeps_its_map():
    rgb = texture(16, 200)
    classes = np.zeros((16, 200), np.uint8)
    assert Motion(rgb, classes).follow(np.roll(rgb, 4, 1)) is classes


def test_images_and_labels_are_refused():
    images, video = (SimpleNamespace(kind=kind, name="street") for kind in ("images", "video"))
    with pytest.raises(UsageError, match="street: --hold goes on from one frame of a video to the next"):
        refuse_unfit(HELD, images, fake_manifest())
    labels = SimpleNamespace(task="classification", name="birds")
    with pytest.raises(UsageError, match="birds names whole frames, so --warp has no map to move; give --hold"):
        refuse_unfit(WARPED, video, labels)
    refuse_unfit(HELD, video, labels)
    refuse_unfit(WARPED, video, fake_manifest())
