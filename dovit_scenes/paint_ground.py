"""The ground, row by row: road, markings, kerbs and pavements, their grain, and the shadows on them.

A row of the picture lies at one depth, so each of its pixels has a place on the street, and what lies there
follows from the street's cross-section. Edges are softened over one pixel's footprint, so the ground needs no
oversampling: it is made at the picture's own size and then enlarged onto the sheet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import NEAR, Points
from dovit_scenes.canvas import OVERSAMPLING, SHIFT, Canvas
from dovit_scenes.light import Colour
from dovit_scenes.street import Street
from dovit_scenes.surfaces import TILE, Field, noise_tile
from dovit_scenes.things import Bicyclist, Building, Car, Crossing, Pedestrian, Pole, SceneClass, Thing, Tree

Values = npt.NDArray[np.floating[Any]]

KERB_STONE = 0.16
"""Width of the kerb stones, metres; they belong to the pavement."""

LINE = 0.06
"""Half the width of a painted line, metres."""

PAINT: Colour = (222.0, 222.0, 216.0)


@dataclass(frozen=True)
class GroundRows:
    """Where the picture's pixels below the horizon lie on the street."""

    top: int
    """First row of the picture."""
    depth: Field
    """(rows, 1) metres ahead."""
    x: Field
    """(rows, width) metres across, street coordinates."""
    s: Field
    """(rows, 1) metres along, street coordinates."""
    footprint: Field
    """(rows, 1) metres across that one pixel covers."""
    stretch: Field
    """(rows, 1) metres along that one pixel covers."""


def ground_rows(canvas: Canvas) -> GroundRows:
    """Places of all pixels below the horizon."""
    camera = canvas.camera
    focal, horizon = camera.focal / OVERSAMPLING, camera.horizon / OVERSAMPLING
    height, width = camera.height // OVERSAMPLING, camera.width // OVERSAMPLING
    top = int(max(0, np.floor(horizon)))
    rows = np.arange(top, height, dtype=np.float32) + 0.5
    depth = (focal * camera.elevation / np.maximum(rows - horizon, 0.25))[:, None]
    columns = np.arange(width, dtype=np.float32) + 0.5 - width / 2
    footprint = depth / focal
    x = camera.side * columns[None, :] * footprint - camera.shift(depth) + np.float32(camera.x)
    stretch = depth * depth / (focal * camera.elevation)
    return GroundRows(top, depth, x, (depth + camera.s).astype(np.float32), footprint, stretch)


def paint_ground(canvas: Canvas, street: Street, crossings: Sequence[Crossing]) -> None:
    """Fill everything below the horizon with road and pavement."""
    rows = ground_rows(canvas)
    left, right = street.kerbs
    on_road = _between(rows.x, left, right, rows.footprint)
    colours = _pavement(rows, street)
    colours += (_road(rows, street) - colours) * on_road[..., None]
    marked = _markings(rows, street, crossings) * on_road
    colours += (np.asarray(PAINT, np.float32) - colours) * (0.86 * marked * _wear(rows))[..., None]
    colours *= canvas.light.on((0.0, 1.0, 0.0))
    haze = canvas.light.fade(rows.depth)[..., None]
    colours += (np.asarray(canvas.light.haze, np.float32) - colours) * haze
    kinds = np.where((rows.x > left) & (rows.x < right), SceneClass.ROAD, SceneClass.PAVEMENT)
    ground = np.concatenate([np.clip(colours, 0, 255), kinds[..., None]], axis=-1).astype(np.uint8)
    area = canvas.pixels[rows.top * OVERSAMPLING :]
    size = (area.shape[1], area.shape[0])
    cv2 = packages.opencv()
    area[..., :3] = cv2.resize(ground[..., :3], size, interpolation=cv2.INTER_LINEAR)
    area[..., 3] = cv2.resize(ground[..., 3], size, interpolation=cv2.INTER_NEAREST)


def _road(rows: GroundRows, street: Street) -> Field:
    """(rows, width, 3) asphalt: grain, patches, darker gutters, worn wheel tracks."""
    grain = _sample(rows, pixels_per_metre=26.0, roughness=0.4)
    patches = _sample(rows, pixels_per_metre=3.0, roughness=1.3)
    grey = street.asphalt * (1.0 + 0.055 * grain + 0.045 * patches)
    for kerb in street.kerbs:
        grey *= 1.0 - 0.22 * np.exp(-np.abs(rows.x - kerb) / 0.35)
    for track in (-0.8, 0.8, 2.5, 4.1):
        grey *= 1.0 + 0.035 * np.exp(-(((rows.x - track) / 0.3) ** 2))
    return (grey[..., None] * np.array([0.99, 1.0, 1.02], np.float32)).astype(np.float32)


def _pavement(rows: GroundRows, street: Street) -> Field:
    """(rows, width, 3) slabs with joints, and lighter kerb stones."""
    grain = _sample(rows, pixels_per_metre=22.0, roughness=0.5)
    patches = _sample(rows, pixels_per_metre=5.0, roughness=1.1)
    grey = 152.0 * (1.0 + 0.04 * grain + 0.05 * patches)
    joints = np.maximum(
        _grid(rows.x, 0.6, 0.012, rows.footprint), _grid(rows.s, 0.9, 0.014, rows.stretch) * np.ones_like(rows.x)
    )
    grey *= 1.0 - 0.3 * joints
    for kerb, side in zip(street.kerbs, (-1, 1), strict=True):
        inner, outer = sorted((kerb, kerb + side * KERB_STONE))
        stone = _between(rows.x, inner, outer, rows.footprint)
        seams = 1.0 - 0.25 * _grid(rows.s, 0.9, 0.02, rows.stretch)
        grey += (186.0 * seams * (1.0 + 0.04 * grain) - grey) * stone
        # The upright face of the kerb, too low to be a polygon of its own.
        edge = _between(rows.x, min(kerb, kerb + side * 0.03), max(kerb, kerb + side * 0.03), rows.footprint)
        grey *= 1.0 - 0.45 * edge
    return (grey[..., None] * np.array([1.02, 1.0, 0.95], np.float32)).astype(np.float32)


def _markings(rows: GroundRows, street: Street, crossings: Sequence[Crossing]) -> Field:
    """(rows, width) share of white paint: centre line, bays of parked cars, zebra crossings."""
    dashes = _dashes(rows.s, 6.0, 3.2, rows.stretch)
    paint = _between(rows.x, street.centre - LINE, street.centre + LINE, rows.footprint) * dashes
    for kerb, side in zip(street.kerbs, (-1, 1), strict=True):
        if street.has_parking(side):
            bay = kerb - side * 2.1
            line = _between(rows.x, bay - 0.04, bay + 0.04, rows.footprint)
            paint = np.maximum(paint, line * _dashes(rows.s, 1.4, 0.8, rows.stretch))
    for crossing in crossings:
        along = _between(rows.s, crossing.s, crossing.s + crossing.length, rows.stretch)
        clear = _between(rows.s, crossing.s - 2.0, crossing.s + crossing.length + 2.0, rows.stretch)
        # Stripes as wide as the gaps; a half is what the eye sees where they are too fine to tell apart.
        stripes = _dashes(rows.x + 20.0, 1.1, 0.55, rows.footprint)
        paint = np.maximum(paint * (1.0 - clear), stripes * along)
    return paint


def _wear(rows: GroundRows) -> Field:
    wear: Field = np.clip(0.9 + 0.16 * _sample(rows, pixels_per_metre=16.0, roughness=0.7), 0.3, 1.0)
    return wear


def _between(at: Field, low: float, high: float, footprint: Field) -> Field:
    """Share of a pixel at `at` that lies between `low` and `high`, all metres."""
    share = np.minimum(at + footprint / 2, high) - np.maximum(at - footprint / 2, low)
    return np.asarray(np.clip(share / footprint, 0.0, 1.0), np.float32)


def _dashes(at: Field, period: float, length: float, footprint: Field) -> Field:
    """Share of a pixel covered by dashes of `length` metres every `period` metres."""
    half = footprint / 2
    covered = _integral(at + half, period, length) - _integral(at - half, period, length)
    return np.asarray(covered / footprint, np.float32)


def _integral(at: Values, period: float, length: float) -> Values:
    """Metres of dash between 0 and `at`."""
    whole = np.floor(at / period)
    return np.asarray(whole * length + np.minimum(at - whole * period, length))


def _grid(at: Field, period: float, half: float, footprint: Field) -> Field:
    """Share of a pixel covered by joints `2 * half` metres wide every `period` metres."""
    return _dashes(at, period, 2 * half, footprint)


def _sample(rows: GroundRows, *, pixels_per_metre: float, roughness: float) -> Field:
    """(rows, width) noise fixed to the ground; fades out where a pixel covers more than a noise pixel."""
    cv2 = packages.opencv()
    across = np.mod(rows.x * pixels_per_metre, TILE)
    along = np.broadcast_to(np.mod(rows.s * pixels_per_metre, TILE), across.shape)
    field = cv2.remap(
        noise_tile(0, roughness=roughness),
        np.ascontiguousarray(across, np.float32),
        np.ascontiguousarray(along, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    blur = np.maximum(rows.stretch, rows.footprint) * pixels_per_metre
    return np.asarray(field / (1.0 + 0.35 * blur * blur), np.float32)


# Shadows on the ground: cast by houses, trees and poles along the sun, and the dark under everything low.
#
# All shadows are collected in two masks and laid on the ground at once, so that two of them never add up. Soft
# edges come from nested polygons on the ground, which perspective then treats rightly.

SIZES = np.array([1.3, 1.15, 1.0, 0.86, 0.7], np.float32)
"""Of the nested polygons that make one soft shadow, against its nominal size."""

STRENGTHS = (0.14, 0.36, 0.62, 0.84, 1.0)
"""Darkness of the nested polygons, 0..1."""

RANGE = 55.0
"""Metres at which the shadows of small things have faded away."""

DARKEST = 0.6
"""Share of light that is missing right under a car."""

Mask = npt.NDArray[np.uint8]

Outline = npt.NDArray[np.float64]
"""(n, 3) corners on the ground, street coordinates."""


def paint_shadows(canvas: Canvas, things: Iterable[Thing], top: int) -> None:
    """Darken the ground below row `top` of the picture; the classes stay as they are."""
    cv2 = packages.opencv()
    area = canvas.pixels[top * OVERSAMPLING :]
    size = (area.shape[0] // OVERSAMPLING, area.shape[1] // OVERSAMPLING)
    if not size[0]:
        return
    shadows = _Shadows(canvas, top, size)
    for thing in things:
        shadows.add_cast(thing)
        shadows.add_contact(thing)
    cast = cv2.GaussianBlur(shadows.cast, (0, 0), 0.8).astype(np.float32)
    kept = 1.0 - canvas.light.shadow / 255.0 * cast
    kept *= 1.0 - DARKEST / 255.0 * shadows.contact.astype(np.float32)
    # Far shadows drown in haze like everything else.
    rows = np.arange(top, top + size[0], dtype=np.float32) + 0.5 - canvas.camera.horizon / OVERSAMPLING
    depth = canvas.camera.focal / OVERSAMPLING * canvas.camera.elevation / np.maximum(rows, 0.25)
    kept += (1.0 - kept) * canvas.light.fade(depth)[:, None]
    scale = cv2.resize(np.rint(255.0 * kept).astype(np.uint8), (area.shape[1], area.shape[0]))
    rgb = np.ascontiguousarray(area[..., :3])
    area[..., :3] = cv2.multiply(rgb, cv2.cvtColor(scale, cv2.COLOR_GRAY2BGR), scale=1.0 / 255.0)


class _Shadows:
    """Two masks (rows, width) at the picture's size, 255 darkest: cast by the sun, and by mere nearness."""

    def __init__(self, canvas: Canvas, top: int, size: tuple[int, int]) -> None:
        self.canvas = canvas
        self.top = top
        self.cast: Mask = np.zeros(size, np.uint8)
        self.contact: Mask = np.zeros(size, np.uint8)
        right, up, ahead = canvas.light.sun
        self.reach = np.array([-right / up, 0.0, -ahead / up])

    def add_cast(self, thing: Thing) -> None:
        """What `thing` throws along the sun."""
        near = self._nearness(thing)
        ground = np.array([thing.x, 0.0, thing.s])
        match thing:
            case Building():
                self._fill(self.cast, [_building_shadow(thing, self.reach)], (1.0,))
            case Tree() if near > 0:
                crown = ground + self.reach * thing.height * 0.62
                self._soft(self.cast, crown, (thing.spread * 0.4, thing.height * 0.3), near)
                self._fill(self.cast, [_bar(ground, crown, 0.12)], (0.8 * near,))
            case Pole() if near > 0:
                self._fill(self.cast, [_bar(ground, ground + self.reach * thing.height, 0.05)], (0.8 * near,))
            case _:
                pass

    def add_contact(self, thing: Thing) -> None:
        """The dark right under `thing`, whatever the light."""
        near = self._nearness(thing)
        if near <= 0:
            return
        ground = np.array([thing.x, 0.0, thing.s])
        match thing:
            case Car():
                self._soft(self.contact, ground, (0.92, 2.15), near, square=True)
            case Pedestrian():
                self._soft(self.contact, ground, (0.3, 0.3), near)
            case Bicyclist():
                self._soft(self.contact, ground, (0.2, 0.85), near)
            case Tree() | Pole():
                self._soft(self.contact, ground, (0.22, 0.22), near)
            case _:
                pass

    def _nearness(self, thing: Thing) -> float:
        """1 near the camera, falling to 0 at `RANGE`: small shadows come gently."""
        return min(1.0, max(0.0, 2.5 * (1.0 - (thing.s - self.canvas.camera.s) / RANGE)))

    def _soft(
        self,
        mask: Mask,
        centre: npt.NDArray[np.float64],
        radii: tuple[float, float],
        strength: float,
        *,
        square: bool = False,
    ) -> None:
        """Nested ellipses (or rounded rectangles) around `centre`, `radii` metres across and along."""
        ring = _SQUARE if square else _CIRCLE
        outlines = centre + (ring * (radii[0], 0.0, radii[1]))[None] * SIZES[:, None, None]
        self._fill(mask, list(outlines), tuple(strength * step for step in STRENGTHS))

    def _fill(self, mask: Mask, outlines: list[Outline], strengths: tuple[float, ...]) -> None:
        """Fill nested polygons on the ground, largest first, never lightening what is already darker."""
        views = self.canvas.camera.view(np.concatenate(outlines))
        if views[:, 2].max() < NEAR:
            return
        cuts = np.cumsum([len(outline) for outline in outlines])[:-1]
        shapes = [self._pixels(view) for view in np.split(views, cuts)]
        corners = np.concatenate([shape for shape in shapes if shape is not None] or [np.zeros((1, 2), np.int32)])
        low = np.maximum(corners.min(axis=0) >> SHIFT, 0)
        high = np.minimum((corners.max(axis=0) >> SHIFT) + 2, (mask.shape[1], mask.shape[0]))
        if (high <= low).any():
            return
        part = mask[low[1] : high[1], low[0] : high[0]]
        layer = np.zeros_like(part)
        for shape, strength in zip(shapes, strengths, strict=True):
            if shape is not None:
                packages.opencv().fillPoly(layer, [shape - (low << SHIFT)], round(255 * strength), 8, SHIFT)
        np.maximum(part, layer, out=part)

    def _pixels(self, view: Points) -> npt.NDArray[np.int32] | None:
        """(n, 2) in the mask, fixed point."""
        pixels = self.canvas.outline(view)
        if pixels is None:
            return None
        shifted = pixels / OVERSAMPLING - (0.5, self.top + 0.5)
        return np.rint(shifted * (1 << SHIFT)).astype(np.int32)


def _ring(power: float) -> npt.NDArray[np.float64]:
    """(20, 3) a circle on the ground; powers below one push it towards a square."""
    turn = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
    x, z = (np.sign(wave) * np.abs(wave) ** power for wave in (np.cos(turn), np.sin(turn)))
    return np.stack([x, np.zeros_like(turn), z], axis=-1)


_CIRCLE, _SQUARE = _ring(1.0), _ring(0.4)


def _building_shadow(thing: Building, reach: npt.NDArray[np.float64]) -> Outline:
    """(n, 3) what the house's block throws on the ground: a convex polygon."""
    back = thing.x + thing.side * thing.depth
    corners = np.array([(x, 0.0, s) for x in (thing.x, back) for s in (thing.s, thing.s + thing.length)])
    points = np.concatenate([corners, corners + reach * thing.height])
    # OpenCV works in 32 bits; around the house's own corner they are plenty, kilometres down the street not.
    around = points - corners[0]
    hull = packages.opencv().convexHull(np.ascontiguousarray(around[:, [0, 2]], np.float32))[:, 0]
    flat: Outline = np.stack([hull[:, 0], np.zeros(len(hull)), hull[:, 1]], axis=-1) + corners[0]
    return flat


def _bar(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], half: float) -> Outline:
    """(4, 3) a strip on the ground from `start` to `end`, `2 * half` metres wide."""
    direction = end - start
    length = float(np.hypot(direction[0], direction[2])) + 1e-6
    across = np.array([direction[2], 0.0, -direction[0]]) / length * half
    return np.array([start - across, start + across, end + across, end - across])
