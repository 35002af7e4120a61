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


def noise_patch(rng: np.random.Generator, height: int, width: int, *, roughness: float) -> Field:
    """(height, width) float32 cut from a tile at a place that `rng` draws; repeats beyond `TILE` pixels."""
    tile = noise_tile(0, roughness=roughness)
    top, left = (int(value) for value in rng.integers(TILE, size=2))
    rows = (top + np.arange(height)) % TILE
    columns = (left + np.arange(width)) % TILE
    return tile[rows[:, None], columns[None, :]]
