"""The ground, row by row: road, markings, kerbs and pavements, and their grain.

A row of the image lies at one depth, so each of its pixels has a position on the street, and what lies there
follows from the street's cross-section. Edges are softened over one pixel's footprint, so the ground needs no
oversampling: it is made at the image's own size and then enlarged onto the sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.canvas import OVERSAMPLING, Canvas
from dovit_scenes.light import Colour
from dovit_scenes.street import Street
from dovit_scenes.texture import TILE, Field, noise_tile
from dovit_scenes.things import Crossing, SceneClass

Values = npt.NDArray[np.floating[Any]]

KERB_STONE = 0.16
"""Width of the kerb stones, metres; they belong to the pavement."""

LINE = 0.06
"""Half the width of a painted line, metres."""

PAINT: Colour = (222.0, 222.0, 216.0)


@dataclass(frozen=True)
class GroundRows:
    """Where the image's pixels below the horizon are on the street."""

    top: int
    """First row of the image."""
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
    """Positions on the street of all pixels below the horizon."""
    camera = canvas.camera
    focal, horizon = camera.focal / OVERSAMPLING, camera.horizon / OVERSAMPLING
    height, width = camera.height // OVERSAMPLING, camera.width // OVERSAMPLING
    top = int(max(0, np.floor(horizon)))
    # Centres of rows; at least a quarter of a pixel below the horizon, where depth would be infinite.
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
    # Pavement everywhere, road over it, paint over that: each with its own softened edge.
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
    # Nearest, because a class cannot be interpolated.
    area[..., 3] = cv2.resize(ground[..., 3], size, interpolation=cv2.INTER_NEAREST)


def _road(rows: GroundRows, street: Street) -> Field:
    """(rows, width, 3) asphalt: grain, patches, darker gutters, worn wheel tracks."""
    grain = _sample(rows, pixels_per_metre=26.0, roughness=0.4)
    patches = _sample(rows, pixels_per_metre=3.0, roughness=1.3)
    grey = street.asphalt * (1.0 + 0.055 * grain + 0.045 * patches)
    for kerb in street.kerbs:
        grey *= 1.0 - 0.22 * np.exp(-np.abs(rows.x - kerb) / 0.35)
    # Two wheels in each lane, metres from the middle of the camera's.
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
        # Stripes as wide as the gaps; a half is what the eye sees where they are too fine to resolve.
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
    # Coverage as a difference of integrals is exact at any distance, so far dashes do not flicker.
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
    # Finer than a pixel the noise would alias; it fades instead.
    blur = np.maximum(rows.stretch, rows.footprint) * pixels_per_metre
    return np.asarray(field / (1.0 + 0.35 * blur * blur), np.float32)
