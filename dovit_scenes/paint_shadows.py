"""Shadows on the ground: cast by houses, trees and poles along the sun, and the dark under everything low.

All shadows are collected in two masks and laid on the ground at once, so that two of them never add up. Soft edges
come from nested polygons on the ground, which perspective then treats rightly.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.camera import NEAR, Points
from dovit_scenes.canvas import OVERSAMPLING, SHIFT, Canvas
from dovit_scenes.things import Bicyclist, Building, Car, Pedestrian, Pole, Thing, Tree

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
    """Darken the ground below row `top` of the image; the classes stay as they are."""
    cv2 = packages.opencv()
    area = canvas.pixels[top * OVERSAMPLING :]
    size = (area.shape[0] // OVERSAMPLING, area.shape[1] // OVERSAMPLING)
    if not size[0]:
        return
    shadows = _Shadows(canvas, top, size)
    for thing in things:
        shadows.add_cast(thing)
        shadows.add_contact(thing)
    # The sun is a disc: even a wall's shadow has a soft edge.
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
    """Two masks (rows, width) at the image's size, 255 darkest: cast by the sun, and by mere nearness."""

    def __init__(self, canvas: Canvas, top: int, size: tuple[int, int]) -> None:
        self.canvas = canvas
        self.top = top
        self.cast: Mask = np.zeros(size, np.uint8)
        self.contact: Mask = np.zeros(size, np.uint8)
        right, up, ahead = canvas.light.sun
        self.reach = np.array([-right / up, 0.0, -ahead / up])

    def add_cast(self, thing: Thing) -> None:
        """What `thing` throws along the sun."""
        # Small shadows fade with distance before they become noise; those of houses never do.
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


def _ring(power: float) -> npt.NDArray[np.float64]:
    """(20, 3) a circle on the ground; powers below one push it towards a square."""
    turn = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
    x, z = (np.sign(wave) * np.abs(wave) ** power for wave in (np.cos(turn), np.sin(turn)))
    return np.stack([x, np.zeros_like(turn), z], axis=-1)


_CIRCLE, _SQUARE = _ring(1.0), _ring(0.4)
