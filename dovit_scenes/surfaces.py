"""Textures on flat surfaces of the street: cut, reduced, lit, hazed, warped and laid on the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import NEAR, Points
from dovit_scenes.canvas import SHIFT, Canvas, Colouring

# A picture on a surface, kept at every scale it is seen at, so that it neither crawls nor sparkles far away.

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


DEEPEST = 1.5
"""Far depth against near depth of one piece of a surface; longer ones are cut, so that each has one scale."""

Pixels = npt.NDArray[np.uint8]


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
        if _in_picture(canvas, pixels):
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
    if length < 1e-6:
        return [(0.0, 1.0)]
    begin = max(near, NEAR)
    count = max(1, math.ceil(math.log(far / begin) / math.log(DEEPEST)))
    cuts = begin * (far / begin) ** (np.arange(count + 1) / count)
    shares = np.clip((cuts - near) / length, 0.0, 1.0)
    return [(float(a), float(b)) for a, b in pairwise(shares)]


def _in_picture(canvas: Canvas, pixels: Points) -> bool:
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    return bool((high >= 0).all() and (low < (canvas.camera.width, canvas.camera.height)).all())


def _paste(
    canvas: Canvas, texture: Texture, patch: _Patch, shade: Colouring, number: int, *, see_through: bool
) -> None:
    """Warp one piece onto the part of the sheet that it covers."""
    cv2 = packages.opencv()
    left, top = (max(0, math.floor(float(v))) for v in patch.pixels.min(axis=0))
    right = min(canvas.camera.width, math.ceil(float(patch.pixels[:, 0].max())) + 1)
    bottom = min(canvas.camera.height, math.ceil(float(patch.pixels[:, 1].max())) + 1)
    size = (right - left, bottom - top)
    lit, source = _lit_columns(canvas, texture.at_scale(*patch.full_size), patch, shade)
    target = (patch.pixels - (left, top)).astype(np.float32)
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


def _lit_columns(canvas: Canvas, level: Pixels, patch: _Patch, shade: Colouring) -> tuple[Pixels, Points]:
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
    owned = inside > 0 if see_through else opacity >= 128
    area[..., 3][owned] = number


# Tileable noise: the grain of asphalt, plaster, leaves and clouds.

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
