"""Tileable noise: the grain of asphalt, plaster, leaves and clouds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

TILE = 512
"""Side of a noise tile, pixels."""


@lru_cache(maxsize=16)
def noise_tile(seed: int, *, roughness: float, size: int = TILE) -> Field:
    """(size, size) float32 noise of mean 0 and deviation 1 that repeats without a seam.

    `roughness` 0 is white noise; 1 has soft grain; 2 has large clouds (amplitude falls as frequency**-roughness).
    """
    rng = np.random.default_rng([seed, 77])
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    rows = np.fft.fftfreq(size)[:, None] * size
    columns = np.fft.rfftfreq(size)[None, :] * size
    frequency = np.sqrt(rows**2 + columns**2)
    frequency[0, 0] = 1.0
    spectrum *= frequency**-roughness
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(size, size))
    out: Field = (field / field.std()).astype(np.float32)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=16)
def _four_tiles(roughness: float) -> Field:
    """(2 * TILE, 2 * TILE): from it any patch up to the size of a tile is a slice."""
    return np.tile(noise_tile(0, roughness=roughness), (2, 2))


def noise_patch(rng: np.random.Generator, height: int, width: int, *, roughness: float) -> Field:
    """(height, width) float32 cut from a tile at a place that `rng` draws; repeats beyond `TILE` pixels."""
    top, left = (int(value) for value in rng.integers(TILE, size=2))
    if height <= TILE and width <= TILE:
        return _four_tiles(roughness)[top : top + height, left : left + width]
    rows, columns = (top + np.arange(height)) % TILE, (left + np.arange(width)) % TILE
    return noise_tile(0, roughness=roughness)[rows[:, None], columns[None, :]]
