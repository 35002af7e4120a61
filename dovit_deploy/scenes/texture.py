"""A picture on a surface, kept at every scale it is seen at, so that it neither crawls nor sparkles far away."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages

Pixels = npt.NDArray[np.uint8]

LEVELS = 7


class Texture:
    """RGBA picture with its reductions by powers of two, separately in height and width (a "ripmap")."""

    def __init__(self, pixels: Pixels, *, opaque: bool = False) -> None:
        """`pixels`: (h, w, 4) uint8, RGB and opacity (255 hides what is behind); `opaque`: it is 255 everywhere."""
        self.opaque = opaque
        self._levels: dict[tuple[int, int], Pixels] = {(0, 0): pixels if opaque else _weighted(pixels)}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the full picture, pixels."""
        height, width = self._levels[0, 0].shape[:2]
        return height, width

    def at_scale(self, rows: float, columns: float) -> Pixels:
        """The reduction for a picture that is shown `rows` by `columns` pixels large.

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
    return int(np.clip(np.floor(np.log2(max(ratio, 1.0)) + 0.35), 0, LEVELS))
