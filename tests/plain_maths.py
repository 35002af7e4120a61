"""The mathematics of a vision transformer on single vectors and small maps, NumPy float64, written to be read.

Nothing here knows of tokens or models; `tests/naive.py` builds the networks of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(vector: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(C,) -> (C,): biased variance, epsilon under the root."""
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    return (vector - mean) / math.sqrt(variance + eps) * weight + bias


def gelu(vector: Array) -> Array:
    """The exact form, x * Phi(x)."""
    result: Array = vector * 0.5 * (1.0 + erf(vector / math.sqrt(2.0)))
    return result


def softmax(vector: Array) -> Array:
    """(K,) -> (K,), summing to 1."""
    powers = np.exp(vector - max(vector))
    result: Array = powers / sum(powers)
    return result


def unit(vector: Array) -> Array:
    """`vector` over its Euclidean length, as torch.nn.functional.normalize does it (epsilon 1e-12)."""
    return vector / max(math.sqrt(sum(vector * vector)), 1e-12)


def convolve(image: Array, weight: Array, bias: Array, *, stride: int, padding: int) -> Array:
    """(C, H, W) with weight (D, C, k, k) -> (D, h, w), zeros outside the image."""
    kernel = weight.shape[-1]
    rows = (image.shape[1] + 2 * padding - kernel) // stride + 1
    columns = (image.shape[2] + 2 * padding - kernel) // stride + 1
    framed = np.zeros((image.shape[0], image.shape[1] + 2 * padding, image.shape[2] + 2 * padding))
    framed[:, padding : padding + image.shape[1], padding : padding + image.shape[2]] = image
    result = np.zeros((weight.shape[0], rows, columns))
    matrix = weight.reshape(weight.shape[0], -1)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            window = framed[:, top : top + kernel, left : left + kernel]
            result[:, row, column] = matrix @ window.reshape(-1) + bias
    return result


def pad_corner(image: Array, multiple: int) -> Array:
    """(C, H, W) -> zeros added at the bottom and on the right, up to multiples of `multiple`."""
    channels, height, width = image.shape
    result = np.zeros((channels, math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple))
    result[:, :height, :width] = image
    return result


def pad_around(image: Array, multiple: int) -> Array:
    """(C, H, W) -> zeros on all sides, up to multiples of `multiple`; of an odd number more at the end."""
    padded = pad_corner(image, multiple)
    before = [(padded.shape[axis] - image.shape[axis]) // 2 for axis in (1, 2)]
    result: Array = np.roll(padded, before, axis=(1, 2))
    return result


def resize(image: Array, size: tuple[int, int], mode: str) -> Array:
    """(C, H, W) -> (C, *size), corners not aligned.

    `bilinear`; `bicubic` and `size` (a = -0.75); `scale`: the same with sample points of a factor that is 0.1 larger;
    `antialias`: a kernel as wide as the reduction (a = -0.5).
    """
    kinds = {"bilinear": _linear_taps, "scale": _scaled_cubic_taps, "antialias": _wide_cubic_taps}
    taps = kinds.get(mode, _cubic_taps)
    rows = [taps(position, image.shape[1], size[0]) for position in range(size[0])]
    columns = [taps(position, image.shape[2], size[1]) for position in range(size[1])]
    result = np.zeros((image.shape[0], *size))
    for y, row_taps in enumerate(rows):
        for x, column_taps in enumerate(columns):
            for source_y, weight_y in row_taps:
                for source_x, weight_x in column_taps:
                    result[:, y, x] += weight_y * weight_x * image[:, source_y, source_x]
    return result


def _linear_taps(position: int, source: int, target: int) -> list[tuple[int, float]]:
    """Which source pixels make the target pixel at `position`, and how much of each."""
    center = max((position + 0.5) * source / target - 0.5, 0.0)
    first = min(math.floor(center), source - 1)
    return [(first, 1.0 - (center - first)), (min(first + 1, source - 1), center - first)]


def _cubic_taps(position: int, source: int, target: float) -> list[tuple[int, float]]:
    """The same for Keys' cubic kernel; pixels outside are those of the border."""
    center = (position + 0.5) * source / target - 0.5
    first = math.floor(center)
    return [(min(max(first + step, 0), source - 1), _keys(abs(center - (first + step)))) for step in (-1, 0, 1, 2)]


def _scaled_cubic_taps(position: int, source: int, target: int) -> list[tuple[int, float]]:
    """As if the target were a tenth of a pixel longer."""
    return _cubic_taps(position, source, target + 0.1)


def _wide_cubic_taps(position: int, source: int, target: int) -> list[tuple[int, float]]:
    """The kernel stretched by the reduction; pixels outside count nothing, and the rest sums to 1."""
    stretch = max(source / target, 1.0)
    center = (position + 0.5) * source / target - 0.5
    reached = [pixel for pixel in range(source) if abs(pixel - center) < 2 * stretch]
    weights = [_keys(abs(pixel - center) / stretch, a=-0.5) for pixel in reached]
    return [(pixel, weight / sum(weights)) for pixel, weight in zip(reached, weights, strict=True)]


def _keys(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
