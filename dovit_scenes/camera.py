"""Pinhole camera driving along a gently winding street: street coordinates -> view -> pixels, and clipping.

Street coordinates, in metres: x to the right of the camera's lane, y up from the road, s along the street.
View coordinates, in metres: x right, y up, z forward, all relative to the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float32]

NEAR = 0.5
"""Metres; nothing nearer than this is painted, polygons that reach nearer are cut."""


@dataclass(frozen=True)
class Bend:
    """Centre line of the street: x = amplitude * sin(s / length + phase), all metres and radians."""

    amplitude: float
    length: float
    phase: float

    def offset(self, s: npt.ArrayLike) -> Points:
        """Sideways position of the centre line at `s`."""
        angle = np.asarray(s, np.float64) / self.length + self.phase
        return (self.amplitude * np.sin(angle)).astype(np.float32)

    def heading(self, s: float) -> float:
        """Direction of the centre line at `s`: radians, for the small angles of a street."""
        return self.amplitude / self.length * math.cos(s / self.length + self.phase)


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, where it looks and how large its image is."""

    width: int
    height: int
    s: float
    """Position along the street, metres."""
    x: float
    """Position sideways, metres from the middle of its lane."""
    elevation: float
    """Metres above the road."""
    pitch: float
    """Radians; positive looks down."""
    bend: Bend
    side: int
    """1: traffic keeps left (the street as described); -1: the same street mirrored."""

    @property
    def focal(self) -> float:
        """Pixels; a vertical field of view of 42 degrees."""
        return 1.3 * self.height

    @property
    def horizon(self) -> float:
        """Row of the horizon in pixels."""
        return self.height * 0.47 - self.pitch * self.focal

    @property
    def heading(self) -> float:
        """Radians, against the street's mean direction."""
        return self.bend.heading(self.s)

    def shift(self, depth: npt.ArrayLike) -> Points:
        """How far the street has bent away sideways at `depth` metres ahead, seen from the camera."""
        ahead = np.asarray(depth, np.float32)
        # The camera drives along the tangent; what is left is how far the street bends away from it.
        straight = self.bend.offset(self.s) + self.bend.heading(self.s) * ahead
        return (self.bend.offset(self.s + ahead) - straight).astype(np.float32)

    def view(self, points: npt.ArrayLike) -> Points:
        """Street coordinates (..., 3) -> view coordinates (..., 3)."""
        # float64: kilometres down the street float32 resolves a millimetre at best, and walls would tremble.
        street = np.asarray(points, np.float64)
        out = np.empty(street.shape, np.float32)
        out[..., 2] = street[..., 2] - self.s
        out[..., 1] = street[..., 1] - self.elevation
        out[..., 0] = street[..., 0] - self.x + self.shift(out[..., 2])
        return out

    def project(self, view: Points) -> Points:
        """View coordinates (..., 3), z >= NEAR -> pixels (..., 2), x then y."""
        scale = self.focal / view[..., 2]
        pixels = np.empty((*view.shape[:-1], 2), np.float32)
        # The one line in which a street with traffic on the right differs from one with traffic on the left.
        pixels[..., 0] = self.width * 0.5 + self.side * view[..., 0] * scale
        pixels[..., 1] = self.horizon - view[..., 1] * scale
        return pixels


def clip_near(polygon: Points) -> Points:
    """The part of `polygon` (n, 3) in view coordinates with z >= NEAR; (0, 3) when nothing is left."""
    return _clip(polygon, polygon[:, 2] - NEAR)


def clip_frame(polygon: Points, camera: Camera, *, margin: float = 3.0) -> Points:
    """Cut `polygon` (n, 3), z >= NEAR, to `margin` times the frame, so that pixel coordinates stay small."""
    # A point is inside where |x| <= slope * z: planes through the camera, so nothing needs to be projected first.
    slopes = (margin * camera.width / camera.focal, margin * camera.height / camera.focal)
    for axis, slope in enumerate(slopes):
        for sign in (1.0, -1.0):
            if len(polygon):
                polygon = _clip(polygon, slope * polygon[:, 2] - sign * polygon[:, axis])
    return polygon


def _clip(polygon: Points, inside: Points) -> Points:
    """Sutherland-Hodgman: keep the side where `inside` (n,) is not negative."""
    if (inside >= 0).all():
        return polygon
    kept: list[Points] = []
    # `polygon[-1]` is the corner before the first.
    for index in range(len(polygon)):
        before, after = inside[index - 1], inside[index]
        if (before >= 0) != (after >= 0):
            share = before / (before - after)
            kept.append(polygon[index - 1] + share * (polygon[index] - polygon[index - 1]))
        if after >= 0:
            kept.append(polygon[index])
    return np.array(kept, np.float32).reshape(-1, 3)
