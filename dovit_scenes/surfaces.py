"""Textures laid on flat surfaces of the street: cut into pieces of one scale, lit, hazed, warped and painted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import NEAR, Points
from dovit_scenes.canvas import SHIFT, Canvas, ColourVector
from dovit_scenes.texture import Pixels, Texture

DEEPEST = 1.5
"""Far depth against near depth of one piece of a surface; longer ones are cut, so that each has one scale."""


@dataclass(frozen=True)
class Surface:
    """The parallelogram `corner` + a * `along` + b * `up`, a and b in 0..1; street coordinates, metres.

    `up` has no part along the street.
    """

    corner: tuple[float, float, float]
    along: tuple[float, float, float]
    up: tuple[float, float, float]


def paint_surface(
    canvas: Canvas,
    surface: Surface,
    texture: Texture,
    shade: npt.ArrayLike,
    number: int,
    *,
    see_through: bool = False,
) -> None:
    """Paint `texture`, its lower left corner at `surface.corner`, colours multiplied by `shade` (3,).

    With `see_through` the number belongs to the whole surface, gaps included; else only to its opaque part.
    """
    base, span, rise = (np.asarray(v, np.float64) for v in (surface.corner, surface.along, surface.up))
    for first, last in _pieces(float(base[2]) - canvas.camera.s, float(span[2])):
        ends = np.array([base + first * span, base + last * span])
        quad = canvas.camera.view(np.concatenate([ends, ends[::-1] + rise]))
        pixels = canvas.camera.project(quad)
        if _in_image(canvas, pixels):
            patch = _Patch((first, last), quad[:2, 2], pixels)
            _paste(canvas, texture, patch, np.asarray(shade, np.float32), number, see_through=see_through)


@dataclass(frozen=True)
class _Patch:
    """One piece of a surface, all of it in front of the camera."""

    columns: tuple[float, float]
    """Which part of the texture's width it shows, 0..1."""
    depths: Points
    """(2,) metres at its left and right end."""
    pixels: Points
    """(4, 2) corners on the sheet: lower left, lower right, upper right, upper left."""

    @property
    def full_size(self) -> tuple[float, float]:
        """Rows and columns that the whole texture would cover at this piece's scale."""
        left, right = self.pixels[3] - self.pixels[0], self.pixels[2] - self.pixels[1]
        width = float(np.hypot(*(self.pixels[1] - self.pixels[0])))
        height = (float(np.hypot(*left)) + float(np.hypot(*right))) / 2
        return height, width / max(self.columns[1] - self.columns[0], 1e-6)


def _pieces(near: float, length: float) -> list[tuple[float, float]]:
    """Shares of a surface from `near` metres ahead on: cut at the near plane and wherever depth has grown enough."""
    far = near + length
    if far <= NEAR:
        return []
    # Across the street: one depth from end to end.
    if length < 1e-6:
        return [(0.0, 1.0)]
    begin = max(near, NEAR)
    # Depth grows by the same factor from cut to cut, so no piece has more than `DEEPEST` times its near depth.
    count = max(1, math.ceil(math.log(far / begin) / math.log(DEEPEST)))
    cuts = begin * (far / begin) ** (np.arange(count + 1) / count)
    shares = np.clip((cuts - near) / length, 0.0, 1.0)
    return [(float(a), float(b)) for a, b in pairwise(shares)]


def _in_image(canvas: Canvas, pixels: Points) -> bool:
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    return bool((high >= 0).all() and (low < (canvas.camera.width, canvas.camera.height)).all())


def _paste(
    canvas: Canvas, texture: Texture, patch: _Patch, shade: ColourVector, number: int, *, see_through: bool
) -> None:
    """Warp one piece onto the part of the sheet that it covers."""
    cv2 = packages.opencv()
    left, top = (max(0, math.floor(float(v))) for v in patch.pixels.min(axis=0))
    right = min(canvas.camera.width, math.ceil(float(patch.pixels[:, 0].max())) + 1)
    bottom = min(canvas.camera.height, math.ceil(float(patch.pixels[:, 1].max())) + 1)
    size = (right - left, bottom - top)
    lit, source = _lit_columns(canvas, texture.at_scale(*patch.full_size), patch, shade)
    target = (patch.pixels - (left, top)).astype(np.float32)
    # Only the covered part is warped; a whole sheet per wall would take most of the time.
    matrix = cv2.getPerspectiveTransform(source, target)
    warped = cv2.warpPerspective(lit, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(inside, [canvas.fixed(target)], 255, cv2.LINE_8, SHIFT)
    area = canvas.pixels[top:bottom, left:right]
    if texture.opaque:
        warped[..., 3] = number
        cv2.copyTo(warped, inside, area)
    else:
        _blend(area, warped, inside, number, see_through=see_through)


def _lit_columns(canvas: Canvas, level: Pixels, patch: _Patch, shade: ColourVector) -> tuple[Pixels, Points]:
    """The lit and hazed columns of a texture, uint8, and where the piece's corners lie in them (4, 2)."""
    height, width = level.shape[:2]
    first, last = patch.columns[0] * width, patch.columns[1] * width
    start, stop = max(0, int(first) - 1), min(width, math.ceil(last) + 1)
    share = np.clip((np.arange(start, stop) + 0.5 - first) / max(last - first, 1e-6), 0, 1)
    haze = canvas.light.fade(patch.depths[0] + (patch.depths[1] - patch.depths[0]) * share)[None, :, None]
    crop = level[:, start:stop].astype(np.float32)
    # Four channels at a time: factors on what is there, and haze in the measure of its opacity.
    factor = np.ones((1, stop - start, 4), np.float32)
    factor[..., :3] = shade * (1.0 - haze)
    veil = np.zeros_like(factor)
    veil[..., :3] = canvas.haze * haze / 255.0
    lit = crop * factor + crop[..., 3:] * veil
    corners = [(first - start, height), (last - start, height), (last - start, 0.0), (first - start, 0.0)]
    return packages.opencv().convertScaleAbs(lit), np.array(corners, np.float32) - np.float32(0.5)


def _blend(area: Pixels, warped: Pixels, inside: Pixels, number: int, *, see_through: bool) -> None:
    """Lay a partly transparent patch over `area`: colours by opacity, the number by its outline."""
    cv2 = packages.opencv()
    opacity = cv2.bitwise_and(warped[..., 3], inside)
    colours = cv2.bitwise_and(warped, warped, mask=inside)
    through = cv2.cvtColor(255 - opacity, cv2.COLOR_GRAY2BGR)
    below = cv2.multiply(np.ascontiguousarray(area[..., :3]), through, scale=1.0 / 255.0)
    area[..., :3] = cv2.add(below, np.ascontiguousarray(colours[..., :3]))
    # Half transparent counts as its own: 128 of 255.
    owned = inside > 0 if see_through else opacity >= 128
    area[..., 3][owned] = number
