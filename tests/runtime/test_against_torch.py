"""The pixel arithmetic against torch itself, which the families' own code uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.transforms import resize_logits, to_class_map, windows
from tests.fakes import FakeSession, fake_manifest

from .plain_pixels import assert_is_argmax, interpolated


def resized(logits, size):
    tensor = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))[None]
    return interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].numpy()


SIZES = [
    ((10, 12), (150, 187)),
    ((23, 30), (360, 480)),
    ((48, 48), (768, 768)),
    ((50, 60), (25, 30)),
    ((5, 7), (1, 1)),
]


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_resized_logits(grid, size):
    logits = np.random.default_rng(0).normal(size=(4, *grid)).astype(np.float32)
    np.testing.assert_allclose(resize_logits(logits, size), resized(logits, size), atol=1e-5)
    np.testing.assert_allclose(interpolated(logits, size), resized(logits, size), atol=1e-5)


@pytest.mark.parametrize("cover", ["image", "padded"])
@pytest.mark.parametrize(
    ("input_size", "grid", "image_size"),
    [
        ((360, 480), (23, 30), (720, 1280)),
        ((360, 480), (92, 120), (719, 1279)),
        ((150, 187), (10, 12), (150, 187)),
        ((128, 128), (8, 8), (37, 411)),
    ],
)
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_class_map(cover, input_size, grid, image_size, noise):
    random = np.random.default_rng(1)
    regions = 5 * interpolated(random.normal(size=(11, 3, 4)), grid)
    logits = (regions + random.normal(scale=noise, size=regions.shape)).astype(np.float32)
    found = to_class_map(logits, input_size, image_size, cover=cover, patch=16)
    canvas = input_size if cover == "image" else tuple(-(-side // 16) * 16 for side in input_size)
    at_input = resized(logits, canvas)[:, : input_size[0], : input_size[1]]
    assert_is_argmax(found, resized(at_input, image_size))


@pytest.mark.parametrize("cover", ["image", "padded"])
def test_sliding_as_mmsegmentation_does_it(cover):
    session = FakeSession(fake_manifest(size=(40, 56), stride=(27, 37), cover=cover))
    pixels = np.random.default_rng(2).normal(size=(1, 3, 101, 130)).astype(np.float32)
    total, count = torch.zeros(1, 5, 101, 130), torch.zeros(1, 1, 101, 130)
    for top, left in windows(101, 130, (40, 56), (27, 37)):
        part = np.ascontiguousarray(pixels[:, :, top : top + 40, left : left + 56])
        canvas = (40, 56) if cover == "image" else (48, 64)
        logits = torch.from_numpy(resized(session.run(part)[0][0], canvas)[:, :40, :56])[None]
        total += torch.nn.functional.pad(logits, (left, 130 - left - 56, top, 101 - top - 40))
        count[:, :, top : top + 40, left : left + 56] += 1
    np.testing.assert_allclose(Predictor(session).logits(pixels), (total / count).numpy(), atol=1e-5)
