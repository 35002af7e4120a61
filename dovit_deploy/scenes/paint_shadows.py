"""Shadows on the ground: cast by houses, trees and poles along the sun, and the dark under everything low.

All shadows are collected in one mask and laid on the ground at once, so that two of them never add up. Soft
edges come from nested polygons on the ground, which perspective then treats rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.scenes.canvas import Canvas, Points
from dovit_deploy.scenes.things import Bicyclist, Building, Car, Pedestrian, Pole, Thing, Tree

STEPS = ((1.22, 0.16), (1.1, 0.36), (0.98, 0.6), (0.86, 0.82), (0.7, 1.0))
"""Size and strength of the nested polygons that make one soft shadow."""

NEAREST_RANGE = 80.0
"""Metres beyond which shadows of small things are left out."""


def paint_shadows(canvas: Canvas, things: Iterable[Thing], top: int) -> None:
    """Darken the ground of `canvas`, whose first row is `top`; the classes stay as they are."""
    cv2 = packages.opencv()
    area = canvas.pixels[top:]
    if not len(area):
        return
    contact = np.zeros(area.shape[:2], np.uint8)
    cast = np.zeros(area.shape[:2], np.uint8)
    for thing in things:
        _add_cast(canvas, cast, thing, top)
        _add_contact(canvas, contact, thing, top)
    cast = cv2.GaussianBlur(cast, (0, 0), 1.2)
    kept = (1.0 - canvas.light.shadow / 255.0 * cast.astype(np.float32)) * (
        1.0 - 0.62 / 255.0 * contact.astype(np.float32)
    )
    # Far shadows drown in haze like everything else.
    rows = np.arange(top, top + len(area), dtype=np.float32) + 0.5 - canvas.camera.horizon
    depth = canvas.camera.focal * canvas.camera.elevation / np.maximum(rows, 0.25)
    kept += (1.0 - kept) * canvas.light.fade(depth)[:, None]
    scale = cv2.merge([kept] * 3)
    area[..., :3] = np.rint(area[..., :3] * scale).astype(np.uint8)


def _add_cast(canvas: Canvas, mask: npt.NDArray[np.uint8], thing: Thing, top: int) -> None:
    right, up, ahead = canvas.light.sun
    reach = np.array([-right / up, 0.0, -ahead / up])
    match thing:
        case Building():
            _fill(canvas, mask, _building_shadow(thing, reach), 255, top)
        case Tree() if thing.s - canvas.camera.s < NEAREST_RANGE:
            centre = np.array([thing.x, 0.0, thing.s]) + reach * thing.height * 0.62
            _soft(canvas, mask, centre, (thing.spread * 0.45, thing.height * 0.34), top)
            _fill(canvas, mask, _bar(thing.x, thing.s, 0.12, centre), 200, top)
        case Pole() if thing.s - canvas.camera.s < NEAREST_RANGE / 2:
            tip = np.array([thing.x, 0.0, thing.s]) + reach * thing.height
            _fill(canvas, mask, _bar(thing.x, thing.s, 0.05, tip), 190, top)
        case _:
            pass


def _building_shadow(thing: Building, reach: npt.NDArray[np.float64]) -> Points:
    """The shadow of the street wall and of the end wall that throws farther, as one convex polygon."""
    back = thing.x + thing.side * thing.depth
    corners = np.array(
        [(x, 0.0, s) for x in (thing.x, back) for s in (thing.s, thing.s + thing.length)], np.float64
    )
    points = np.concatenate([corners, corners + reach * thing.height])
    hull = packages.opencv().convexHull(np.ascontiguousarray(points[:, [0, 2]], np.float32))[:, 0]
    return np.stack([hull[:, 0], np.zeros(len(hull), np.float32), hull[:, 1]], axis=-1)


def _add_contact(canvas: Canvas, mask: npt.NDArray[np.uint8], thing: Thing, top: int) -> None:
    if thing.s - canvas.camera.s > NEAREST_RANGE:
        return
    ground = np.array([thing.x, 0.0, thing.s])
    match thing:
        case Car():
            _soft(canvas, mask, ground, (1.0, 2.35), top, square=True)
        case Pedestrian():
            _soft(canvas, mask, ground, (0.34, 0.34), top)
        case Bicyclist():
            _soft(canvas, mask, ground, (0.22, 0.95), top)
        case Tree() | Pole():
            _soft(canvas, mask, ground, (0.25, 0.25), top)
        case _:
            pass


def _soft(
    canvas: Canvas,
    mask: npt.NDArray[np.uint8],
    centre: npt.NDArray[np.float64],
    radii: tuple[float, float],
    top: int,
    *,
    square: bool = False,
) -> None:
    """Nested ellipses (or rounded rectangles) around `centre`, `radii` metres across and along."""
    turn = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
    power = 0.45 if square else 1.0
    ring = np.stack([_bulge(np.cos(turn), power), np.zeros_like(turn), _bulge(np.sin(turn), power)], axis=-1)
    for size, strength in STEPS:
        outline = centre + ring * np.array([radii[0], 0.0, radii[1]]) * size
        _fill(canvas, mask, outline, int(255 * strength), top)


def _bulge(values: npt.NDArray[np.float64], power: float) -> npt.NDArray[np.float64]:
    """Powers below one push a circle towards a square."""
    return np.sign(values) * np.abs(values) ** power


def _bar(x: float, s: float, half: float, tip: Sequence[float] | npt.NDArray[np.float64]) -> Points:
    """A thin quadrilateral on the ground from (x, s) to `tip`."""
    end_x, end_s = float(tip[0]), float(tip[2])
    length = float(np.hypot(end_x - x, end_s - s)) + 1e-6
    across = np.array([(end_s - s) / length, 0.0, -(end_x - x) / length]) * half
    start, end = np.array([x, 0.0, s]), np.array([end_x, 0.0, end_s])
    return np.array([start - across, start + across, end + across, end - across], np.float32)


def _fill(
    canvas: Canvas, mask: npt.NDArray[np.uint8], outline: npt.ArrayLike, strength: int, top: int
) -> None:
    """Fill a polygon on the ground, never lightening what is already darker."""
    pixels = canvas.outline(canvas.camera.view(outline))
    if pixels is None:
        return
    shape = np.rint((pixels - (0.5, top + 0.5)) * 16).astype(np.int32)
    low = np.maximum(shape.min(axis=0) // 16, 0)
    high = np.minimum(shape.max(axis=0) // 16 + 2, (mask.shape[1], mask.shape[0]))
    if (high <= low).any():
        return
    part = mask[low[1] : high[1], low[0] : high[0]]
    layer = np.zeros_like(part)
    packages.opencv().fillPoly(layer, [shape - low * 16], strength, 8, 4)
    np.maximum(part, layer, out=part)
