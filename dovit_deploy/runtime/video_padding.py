"""Make sizes even: 4:2:0 video stores colour for 2 x 2 pixels at once."""

from __future__ import annotations

import numpy as np

from dovit_deploy.runtime.results import RGB


class EvenPadding:
    """Pads pictures of one size to even height and width by repeating the last row and column."""

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` is (height, width) in pixels."""
        self._height, self._width = size
        self.height, self.width = self._height + self._height % 2, self._width + self._width % 2
        self._buffer: RGB = np.empty((self.height, self.width, 3), dtype=np.uint8)

    def padded(self, rgb: RGB) -> RGB:
        """(height, width, 3), contiguous; a buffer that the next call overwrites, or `rgb` itself.

        Raises:
            ValueError: `rgb` is not of the size that was announced.
        """
        if rgb.shape != (self._height, self._width, 3):
            raise ValueError(f"picture of shape {rgb.shape}; this video is {self._height}x{self._width}")
        if (self.height, self.width) == (self._height, self._width):
            return np.ascontiguousarray(rgb)
        self._buffer[: self._height, : self._width] = rgb
        self._buffer[: self._height, self._width :] = rgb[:, -1:]
        self._buffer[self._height :] = self._buffer[self._height - 1]
        return self._buffer
