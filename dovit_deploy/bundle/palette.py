"""Which colours can be told apart? Distances as the eye sees them, and colours for classes that come without any."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MOST_COLORS = 256
"""Different colours that are generated, as many as a class map can hold; of more classes some share one."""
FIRST = (213, 62, 79)
"""The first generated colour; the others follow from it."""
STEPS = 12
"""Levels of red, green and blue among which colours are chosen."""
LIGHTNESS = (0.4, 0.93)
"""Of generated colours, 0 (black) to 1 (white): darker and lighter ones are lost on dark and light images."""
SMALLEST_CHROMA = 0.06
"""Of generated colours: greys look like an image that is not painted."""

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab_from_rgb(colors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """sRGB 0..255 (n, 3) in Oklab (n, 3): lightness 0..1, and two axes of colour; equal distances look alike.

    Source: B. Ottosson, "A perceptual color space for image processing", 2020.
    """
    shares = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T)


def color_distances(colors: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """How different every two colours look, (n, n): 0 the same, below 0.1 hard to tell apart in an overlay, 1 black and
    white."""
    lab = oklab_from_rgb(colors)
    return np.asarray(np.linalg.norm(lab[:, None] - lab[None], axis=2))


def generated_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` colours that are easy to tell apart, always the same; fewer are the first of more."""
    colors = _spread_colors()
    return [colors[number % MOST_COLORS] for number in range(count)]


@functools.cache
def _spread_colors() -> tuple[tuple[int, int, int], ...]:
    """Each colour is the candidate that differs most from all before it."""
    levels = np.round(np.linspace(0, 255, STEPS)).astype(np.intp)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab_from_rgb(candidates)
    fits = (
        (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) > SMALLEST_CHROMA)
    )
    candidates, lab = candidates[fits], lab[fits]
    chosen = [FIRST]
    nearest = np.linalg.norm(lab - oklab_from_rgb([FIRST]), axis=1)
    while len(chosen) < MOST_COLORS:
        best = int(np.argmax(nearest))
        red, green, blue = candidates[best].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=1))
    return tuple(chosen)
