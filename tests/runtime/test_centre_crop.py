"""The centre of a picture: equal to Pillow and torchvision's rule, and found again in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.bundle.manifest import CentreCrop, Preprocessing
from dovit_deploy.runtime.centre_crop import LONGEST, centre_crop, crop_region
from dovit_deploy.runtime.transforms import to_input


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
    if max(height, width) > LONGEST * min(height, width):
        return
    rgb = noise(height, width)
    ours = centre_crop(rgb, shorter=size + border, size=(size, size))
    np.testing.assert_array_equal(ours, torchvisions(rgb, size + border, size))


def test_the_usual_proportions():
    assert CentreCrop.of_size((224, 224)).shorter == 256
    assert CentreCrop.of_size((384, 384)).shorter == 438
    # A rectangle fits into the resized picture whichever way that lies.
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
    # Half a pixel of the resized picture, by the rounding of the border and of the longer side.
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
