"""One random view of a labelled image: a warp that flips, scales, stretches and crops, then a change of colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.datasets.dataset import IGNORE, Sample
from dovit_deploy.train.config import Augmentation, Scaling


@dataclass(frozen=True)
class View:
    """What the network is trained on.

    `pixels` (3, h, w) float32 normalised, `label` (h, w) uint8; `place` says where in the augmented image the crop
    lies, row and column each in [0, 1], 0 at the top or left edge and 1 at the bottom or right edge.
    """

    pixels: NDArray[np.float32]
    label: NDArray[np.uint8]
    place: tuple[float, float]


def normalised(rgb: NDArray[np.uint8], scaling: Scaling) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    mean, std = np.array(scaling.mean, np.float32), np.array(scaling.std, np.float32)
    pixels: NDArray[np.float32] = (rgb.astype(np.float32) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 bilinearly resized to `size` (height, width); unchanged when it has that size."""
    if rgb.shape[:2] == size:
        return rgb
    cv2 = packages.opencv()
    return cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def random_view(
    sample: Sample,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    ranges: Augmentation,
    scaling: Scaling,
    rng: np.random.Generator,
) -> View:
    """A view of `crop` (height, width) pixels, cut from `sample` as if it had been resized to `size` first."""
    cv2 = packages.opencv()
    height, width = sample.label.shape
    scale, aspect = _draw(ranges.scale, rng), np.sqrt(_draw(ranges.aspect, rng))
    zoom = np.array([scale * size[0] / height / aspect, scale * size[1] / width * aspect])
    place = rng.random(2)
    start = place * (zoom * (height, width) - crop)
    # Pixel centres lie at half-integers: x' + 0.5 = zoom * (x + 0.5) - start.
    shift = 0.5 * zoom - start - 0.5
    matrix = np.array([[zoom[1], 0, shift[1]], [0, zoom[0], shift[0]]])
    if rng.random() < 0.5:
        matrix[0] = [-zoom[1], 0, crop[1] - 1 - shift[1]]
        place[1] = 1 - place[1]
    target = (crop[1], crop[0])
    rgb = cv2.warpAffine(
        _recoloured(sample.rgb, ranges, rng),
        matrix,
        target,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    label = cv2.warpAffine(
        sample.label, matrix, target, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
    )
    inside = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, target, flags=cv2.INTER_NEAREST)
    # Outside the image lies what padding puts there at inference: zeros after normalisation.
    return View(normalised(rgb, scaling) * inside, label, (float(place[0]), float(place[1])))


def _draw(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Log-uniform, so that halving is as likely as doubling."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _recoloured(rgb: NDArray[np.uint8], ranges: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gamma, brightness and a gain per channel by table, then saturation."""
    cv2 = packages.opencv()
    curve = (np.arange(256) / 255.0) ** _draw(ranges.gamma, rng) * _draw(ranges.brightness, rng)
    gains = np.array([_draw(ranges.channel_gain, rng) for _ in range(3)])
    table = np.clip(255.0 * curve[:, None] * gains, 0, 255).astype(np.uint8)
    coloured = cv2.LUT(rgb, table[None])
    grey = cv2.cvtColor(cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    saturation = _draw(ranges.saturation, rng)
    return cv2.addWeighted(coloured, saturation, grey, 1 - saturation, 0)  # type: ignore[no-any-return]
