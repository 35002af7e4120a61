"""What surfaces look like: images kept at every scale they are seen at, and the noise that gives them grain.

Far away a texture that is kept at one scale alone would crawl and sparkle.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages

Pixels = npt.NDArray[np.uint8]
"""(h, w, 4) uint8: RGB and opacity."""

Sheet = npt.NDArray[np.float32]
"""(h, w, 3 or 4) float32 RGB (and opacity) of a texture that is being drawn; row 0 is its top."""

Field = npt.NDArray[np.float32]
"""float32 values over the pixels of an image, one or three a pixel."""

LEVELS = 7
"""Halvings of a texture that are kept at most, each way."""

TILE = 512
"""Side of a noise tile, pixels."""


class Texture:
    """RGBA image with its reductions by powers of two, separately in height and width (a "ripmap")."""

    def __init__(self, pixels: Pixels, *, opaque: bool = False) -> None:
        """`pixels`: (h, w, 4) uint8, RGB and opacity (255 hides what is behind); `opaque`: it is 255 everywhere."""
        self.opaque = opaque
        # Without transparent pixels there is nothing to weight.
        self._levels: dict[tuple[int, int], Pixels] = {(0, 0): pixels if opaque else _weighted(pixels)}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the full image, pixels."""
        height, width = self._levels[0, 0].shape[:2]
        return height, width

    def at_scale(self, rows: float, columns: float) -> Pixels:
        """The reduction for a image that is shown `rows` by `columns` pixels large.

        Returns (h', w', 4) uint8: colours multiplied by opacity / 255, and opacity.
        """
        height, width = self.size
        return self._level(_level_for(height, rows), _level_for(width, columns))

    def _level(self, down: int, across: int) -> Pixels:
        key = (down, across)
        if key not in self._levels:
            cv2 = packages.opencv()
            height, width = self.size
            size = (max(1, width >> across), max(1, height >> down))
            self._levels[key] = cv2.resize(self._levels[0, 0], size, interpolation=cv2.INTER_AREA)
        return self._levels[key]


def _weighted(pixels: Pixels) -> Pixels:
    """Colours times opacity: those under transparent pixels must not bleed into their neighbours."""
    cv2 = packages.opencv()
    opacity = np.ascontiguousarray(pixels[..., 3])
    factor = cv2.merge([opacity, opacity, opacity, np.full_like(opacity, 255)])
    out: Pixels = cv2.multiply(pixels, factor, scale=1.0 / 255.0)
    return out


def _level_for(source: int, shown: float) -> int:
    """Halvings after which `source` pixels are between one and two times `shown`."""
    ratio = source / max(shown, 1.0)
    # A third of a level early: a little soft rather than sparkling.
    return int(np.clip(np.floor(np.log2(max(ratio, 1.0)) + 0.35), 0, LEVELS))


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
    # The entry of the mean, whose frequency is 0, is overwritten below.
    spectrum *= frequency**-roughness
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(size, size))
    out: Field = (field / field.std()).astype(np.float32)
    out.setflags(write=False)
    return out


def noise_patch(rng: np.random.Generator, height: int, width: int, *, roughness: float) -> Field:
    """(height, width) float32 cut from a tile at an offset that `rng` draws; repeats beyond `TILE` pixels."""
    top, left = (int(value) for value in rng.integers(TILE, size=2))
    # A slice of the fourfold tile is a view; the general way copies.
    if height <= TILE and width <= TILE:
        return _four_tiles(roughness)[top : top + height, left : left + width]
    rows, columns = (top + np.arange(height)) % TILE, (left + np.arange(width)) % TILE
    return noise_tile(0, roughness=roughness)[rows[:, None], columns[None, :]]


@lru_cache(maxsize=16)
def _four_tiles(roughness: float) -> Field:
    """(2 * TILE, 2 * TILE): from it any patch up to the size of a tile is a slice."""
    return np.tile(noise_tile(0, roughness=roughness), (2, 2))
