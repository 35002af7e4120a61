"""The picture of a classifier: its shorter side resized, the centre cut out; and where that centre lies.

As DeiT, LeViT and Swin are evaluated: torchvision's `Resize(shorter, bicubic)` and `CenterCrop` on a Pillow image.
Pillow's bicubic (a = -0.5) is as wide as the reduction, so it does not alias; OpenCV's is another one and does. Sizes
are (height, width) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dovit_deploy import packages
from dovit_deploy.runtime.results import RGB, Region

Size = tuple[int, int]

LONGEST = 16
"""Of a picture longer than so many times its shorter side the middle is taken first: a strip of one row would be
enlarged to a picture that fills the memory."""


@dataclass(frozen=True)
class _Axis:
    """One axis: `kept` pixels of the picture from `first` on become `resized`, of which `cut` from `start` on stay."""

    first: int
    kept: int
    resized: int
    start: int
    cut: int

    @property
    def place(self) -> tuple[float, float]:
        """First pixel and number of pixels of the picture that stay."""
        scale = self.kept / self.resized
        return self.first + self.start * scale, self.cut * scale


def centre_crop(rgb: RGB, *, shorter: int, size: Size) -> RGB:
    """The centre of a picture whose shorter side was resized to `shorter` pixels.

    Args:
        rgb: (H, W, 3) uint8.
        shorter: at least as large as both sides of `size`.
        size: of the result.

    Returns:
        (*size, 3) uint8, equal to Pillow's resize and torchvision's crop; a new array.
    """
    pillow = packages.pillow()
    rows, columns = _axes(rgb.shape[:2], shorter, size)
    middle = rgb[rows.first : rows.first + rows.kept, columns.first : columns.first + columns.kept]
    image = pillow.fromarray(np.ascontiguousarray(middle))
    resized = image.resize((columns.resized, rows.resized), pillow.Resampling.BICUBIC)
    box = columns.start, rows.start, columns.start + columns.cut, rows.start + rows.cut
    return np.array(resized.crop(box), dtype=np.uint8)


def crop_region(picture: Size, *, shorter: int, size: Size) -> Region:
    """Where the result of `centre_crop` lies in a picture of the size `picture`, in its pixels."""
    (top, height), (left, width) = (axis.place for axis in _axes(picture, shorter, size))
    return Region(top, left, height, width)


def _axes(picture: Size, shorter: int, size: Size) -> tuple[_Axis, _Axis]:
    least = min(picture)
    rows, columns = (
        _axis(length, least=least, shorter=shorter, cut=cut) for length, cut in zip(picture, size, strict=True)
    )
    return rows, columns


def _axis(length: int, *, least: int, shorter: int, cut: int) -> _Axis:
    kept = min(length, LONGEST * least)
    # Both roundings are torchvision's: the longer side is truncated, half a pixel of the border goes to the even side.
    resized = shorter * kept // least
    return _Axis((length - kept) // 2, kept, resized, round((resized - cut) / 2), cut)
