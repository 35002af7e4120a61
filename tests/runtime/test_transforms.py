"""Before and after the model: resizing, windows, centre crops, and logits back to the image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.bundle.manifest import CentreCrop, Preprocessing
from dovit_deploy.errors import ConfigError, InputError
from dovit_deploy.runtime.transforms import (
    LONGEST_ENLARGED,
    LONGEST_STRIP,
    centre_crop,
    covered_size,
    crop_region,
    logits_at_input,
    resize_logits,
    sliding_size,
    to_class_map,
    to_input,
    windows,
)
from tests.fakes import MEAN, STD

from .plain_pixels import assert_is_argmax, interpolated, stretched


def preprocessing(stride=None):
    return Preprocessing(mean=MEAN, std=STD, assumed=False, stride=stride)


def image(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(rgb):
    return ((rgb.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(40, 60), (17, 23), (64, 128), (1, 1), (1, 300), (200, 1)])
def test_a_image_is_resized_to_the_models_size_and_normalised(size):
    rgb = image(*size)
    pixels = to_input(rgb, preprocessing(), (40, 60))
    assert pixels.shape == (1, 3, 40, 60) and pixels.dtype == np.float32 and pixels.flags.c_contiguous
    resized = cv2.resize(rgb, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(pixels, normalised(resized), atol=1e-6)
    # OpenCV rounds to whole grey values, as it does in mmsegmentation; it is bilinear up to that.
    plain = interpolated(rgb.transpose(2, 0, 1), (40, 60)).transpose(1, 2, 0)
    assert np.abs(resized - plain).max() <= 1.0


def test_red_comes_first():
    rgb = np.zeros((20, 20, 3), dtype=np.uint8)
    rgb[..., 0] = 255
    pixels = to_input(rgb, preprocessing(), (20, 20))
    assert pixels[0, 0, 0, 0] == pytest.approx((255 - MEAN[0]) / STD[0])
    assert pixels[0, 2, 0, 0] == pytest.approx(-MEAN[2] / STD[2])


def test_a_strided_view_gives_what_a_copy_gives():
    rgb = image(40, 60)
    for view in (rgb[::-1], rgb[:, ::2], rgb[..., ::-1]):
        np.testing.assert_array_equal(
            to_input(view, preprocessing(), (32, 32)), to_input(view.copy(), preprocessing(), (32, 32))
        )


def test_with_a_stride_a_larger_image_keeps_its_size():
    rgb = image(50, 90)
    np.testing.assert_allclose(to_input(rgb, preprocessing((16, 16)), (32, 32)), normalised(rgb), atol=1e-6)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 128), st.integers(16, 128))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_sliding_sizes_hold_a_window_and_keep_proportions(height, width, window_height, window_width):
    found = sliding_size((height, width), (window_height, window_width))
    assert found[0] >= window_height and found[1] >= window_width
    if height >= window_height and width >= window_width:
        assert found == (height, width)
        return
    limits = max(height, LONGEST_ENLARGED * window_height), max(width, LONGEST_ENLARGED * window_width)
    assert found[0] <= limits[0] and found[1] <= limits[1]
    scale = max(window_height / height, window_width / width)
    if height * scale < limits[0] and width * scale < limits[1]:
        assert abs(found[0] - height * scale) <= 0.5 and abs(found[1] - width * scale) <= 0.5


def test_a_image_of_one_row_does_not_fill_the_memory():
    assert sliding_size((1, 3000), (512, 512)) == (512, 8 * 512)
    assert sliding_size((1, 9000), (512, 512)) == (512, 9000)


def mmseg_windows(height, width, size, stride):
    """Written after mmsegmentation's slide_inference."""
    grids = [max(n - c + s - 1, 0) // s + 1 for n, c, s in zip((height, width), size, stride, strict=True)]
    corners = []
    for row in range(grids[0]):
        for column in range(grids[1]):
            bottom, right = (
                min(row * stride[0] + size[0], height),
                min(column * stride[1] + size[1], width),
            )
            corners.append((max(bottom - size[0], 0), max(right - size[1], 0)))
    return tuple(corners)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20), st.integers(1, 20), st.data())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_windows_follow_the_rule_and_cover_everything(extra_height, extra_width, high, wide, data):
    stride = data.draw(st.tuples(st.integers(1, high), st.integers(1, wide)))
    height, width = high + extra_height, wide + extra_width
    corners = windows(height, width, (high, wide), stride)
    assert corners == mmseg_windows(height, width, (high, wide), stride)
    assert len(set(corners)) == len(corners) and list(corners) == sorted(corners)
    seen = np.zeros((height, width), dtype=bool)
    for top, left in corners:
        assert 0 <= top <= height - high and 0 <= left <= width - wide
        seen[top : top + high, left : left + wide] = True
    assert seen.all()
    assert corners[-1] == (height - high, width - wide)


def test_cityscapes_takes_eight_windows():
    assert len(windows(1025, 2049, (768, 768), (512, 512))) == 8


@pytest.mark.parametrize("stride", [(0, 8), (8, -1), (17, 8), (8, 17)])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(ConfigError, match=f"stride {stride[0]}x{stride[1]}.*16x16"):
        windows(64, 64, (16, 16), stride)


def test_an_input_smaller_than_the_window_is_refused():
    with pytest.raises(InputError, match=r"15x64 .* 16x16"):
        windows(15, 64, (16, 16), (8, 8))


@pytest.mark.parametrize(
    ("grid", "size"),
    [((4, 6), (50, 77)), ((23, 30), (360, 480)), ((9, 9), (5, 4)), ((8, 8), (4, 4)), ((1, 1), (3, 9))],
)
def test_logits_are_resized_bilinearly(grid, size):
    logits = np.random.default_rng(0).normal(size=(3, *grid)).astype(np.float32)
    np.testing.assert_allclose(resize_logits(logits, size), interpolated(logits, size), atol=1e-5)


def test_logits_of_the_right_size_are_not_touched():
    logits = np.ones((2, 4, 4), dtype=np.float32)
    assert resize_logits(logits, (4, 4)) is logits


def test_what_the_grid_covers():
    assert covered_size((150, 187), cover="image", patch=16) == (150, 187)
    assert covered_size((150, 187), cover="padded", patch=16) == (160, 192)
    assert covered_size((64, 32), cover="padded", patch=32) == (64, 32)


def test_logits_at_the_input_cover_the_padding_where_the_family_says_so():
    logits = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    image = logits_at_input(logits, (40, 50), cover="image", patch=16)
    padded = logits_at_input(logits, (40, 50), cover="padded", patch=16)
    np.testing.assert_allclose(image, interpolated(logits, (40, 50)), atol=1e-5)
    np.testing.assert_allclose(padded, interpolated(logits, (48, 64))[:, :40, :50], atol=1e-5)
    assert np.abs(image - padded).max() > 0.1


@pytest.mark.parametrize("cover", ["image", "padded"])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("image_size", [(41, 53), (90, 130), (7, 9), (1, 1), (1, 200)])
def test_the_class_map_is_the_argmax_of_logits_resized_twice(cover, scale, image_size):
    logits = np.random.default_rng(scale).normal(size=(6, 3 * scale, 4 * scale)).astype(np.float32)
    found = to_class_map(logits, (41, 53), image_size, cover=cover, patch=16)
    canvas = (41, 53) if cover == "image" else (48, 64)
    assert_is_argmax(found, stretched(logits, (41, 53), image_size, canvas=canvas))


def test_the_two_resizes_are_not_replaced_by_one():
    logits = np.random.default_rng(5).normal(size=(6, 8, 8)).astype(np.float32)
    found = to_class_map(logits, (20, 20), (160, 160), cover="image", patch=16)
    once = interpolated(logits, (160, 160)).argmax(axis=0)
    assert (found != once).mean() > 0.005


def test_logits_at_the_images_size_are_only_compared():
    logits = np.random.default_rng(6).normal(size=(5, 12, 14)).astype(np.float32)
    found = to_class_map(logits, (12, 14), (12, 14), cover="image", patch=16)
    np.testing.assert_array_equal(found, logits.argmax(axis=0))


# The centre of an image: equal to Pillow and torchvision's rule, and its rectangle in the image.


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvisions(rgb: np.ndarray, shorter: int, size: int) -> np.ndarray:
    """`Resize(shorter, BICUBIC)` and `CenterCrop(size)`, written from their documentation and sources."""
    image = Image.fromarray(rgb)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(shorter * long / short)
    image = image.resize((shorter, longer) if width <= height else (longer, shorter), Image.Resampling.BICUBIC)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return np.array(image.crop((left, top, left + size, top + size)))


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    border=st.integers(0, 9),
)
@example(height=31, width=17, size=24, border=3)
@example(height=32, width=32, size=24, border=8)
def test_equal_to_torchvisions_rule(height, width, size, border):
    if max(height, width) > LONGEST_STRIP * min(height, width):
        return
    rgb = noise(height, width)
    ours = centre_crop(rgb, shorter=size + border, size=(size, size))
    np.testing.assert_array_equal(ours, torchvisions(rgb, size + border, size))


def test_the_usual_proportions():
    assert CentreCrop.of_size((224, 224)).shorter == 256
    assert CentreCrop.of_size((384, 384)).shorter == 438
    # A rectangle fits into the resized image whichever side is the longer.
    assert CentreCrop.of_size((160, 224)).shorter == 256
    assert centre_crop(noise(300, 500), shorter=256, size=(160, 224)).shape == (160, 224, 3)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 200)])
def test_strips_take_no_memory(shape):
    region = crop_region(shape, shorter=256, size=(224, 224))
    assert centre_crop(noise(*shape), shorter=256, size=(224, 224)).shape == (224, 224, 3)
    for start, length, whole in ((region.top, region.height, shape[0]), (region.left, region.width, shape[1])):
        assert 0 <= start <= start + length <= whole


@given(height=st.integers(20, 400), width=st.integers(20, 400))
def test_the_region_is_where_the_crop_was_taken(height, width):
    region = crop_region((height, width), shorter=32, size=(28, 28))
    centre = region.top + region.height / 2, region.left + region.width / 2
    # Half a pixel of the resized image, by the rounding of the border and of the longer side.
    slack = min(height, width) / 32
    assert centre == (pytest.approx(height / 2, abs=slack), pytest.approx(width / 2, abs=slack))
    assert region.height == pytest.approx(28 / 32 * min(height, width), abs=slack)
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 250, width)
    rgb[:] = np.round(ramp)[None, :, None]
    cropped = centre_crop(rgb, shorter=32, size=(28, 28))
    middle = np.interp(region.left + region.width / 2 - 0.5, np.arange(width), ramp)
    assert cropped[14, 13:15].mean() == pytest.approx(middle, abs=2)


def test_pixels_are_those_of_the_crop():
    preprocessing = Preprocessing(
        mean=(100, 110, 120), std=(50, 60, 70), assumed=False, stride=None, crop=CentreCrop(shorter=40)
    )
    rgb = noise(90, 61)
    pixels = to_input(rgb, preprocessing, (32, 32))
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == np.float32
    wanted = (torchvisions(rgb, 40, 32) - np.array([100, 110, 120])) / np.array([50, 60, 70])
    np.testing.assert_allclose(pixels[0], wanted.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
    old = preprocessing.model_dump()
    del old["crop"]
    assert Preprocessing.model_validate(old).crop is None
