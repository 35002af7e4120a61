"""Solid bodies from flat faces: built once in their own coordinates, then placed, culled, lit and painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovit_deploy.scenes.camera import Points
from dovit_deploy.scenes.canvas import Canvas

Face = tuple[Points, str]
"""Corners (n, 3) in metres (x right, y up, z forward) and the name of what it is made of."""


@dataclass(frozen=True)
class Mesh:
    """Faces in painting order; each is painted when its outside is turned to the camera."""

    points: Points
    """(P, 3) all corners."""
    cuts: tuple[int, ...]
    """Where each face's corners begin in `points`, and P at the end."""
    normals: Points
    """(F, 3) unit vectors outwards."""
    materials: tuple[str, ...]

    def paint(
        self,
        canvas: Canvas,
        place: tuple[float, float],
        heading: int,
        colours: dict[str, npt.NDArray[np.float32]],
        number: int,
    ) -> None:
        """Paint the body standing at `place` (x, s); `colours` (3,) RGB per material, before light."""
        # A heading of -1 is half a turn: both horizontal axes change sign.
        turn = np.array([heading, 1.0, heading], np.float32)
        view = canvas.camera.view(self.points * turn + np.array([place[0], 0.0, place[1]]))
        normals = self.normals * turn
        first = view[list(self.cuts[:-1])]
        shown = np.flatnonzero((normals * first).sum(axis=1) < 0)
        lights = canvas.light.on(normals)
        faces = [view[self.cuts[index] : self.cuts[index + 1]] for index in shown]
        tones = [
            colours[material] * (1.0 if material.startswith("lamp") else lights[index])
            for index, material in ((index, self.materials[index]) for index in shown)
        ]
        canvas.fill_body(faces, tones, number)


def mesh_from_parts(parts: list[tuple[Points, list[Face]]]) -> Mesh:
    """Join convex parts, given as (a point inside, faces); outwards is away from that point."""
    points: list[Points] = []
    normals: list[Points] = []
    materials: list[str] = []
    cuts = [0]
    for inside, faces in parts:
        for corners, material in faces:
            points.append(corners)
            normals.append(_outward(corners, inside))
            materials.append(material)
            cuts.append(cuts[-1] + len(corners))
    return Mesh(np.concatenate(points), tuple(cuts), np.array(normals, np.float32), tuple(materials))


def prism(profile: list[tuple[float, float]], widths: list[float], material: str) -> list[Face]:
    """A body from its side view: `profile` (z, y) and half its width there, metres."""
    z, y = (np.array(values, np.float32) for values in zip(*profile, strict=True))
    half = np.array(widths, np.float32)
    right = np.stack([half, y, z], axis=-1)
    left = np.stack([-half, y, z], axis=-1)
    after = np.roll(np.arange(len(profile)), -1)
    around = [(np.array([left[k], right[k], right[n], left[n]], np.float32), material) for k, n in enumerate(after)]
    return [*around, (left, material), (right, material)]


def rectangle(axis: str, at: float, a: tuple[float, float], b: tuple[float, float]) -> Points:
    """A flat rectangle: across `axis` "x" (a is z, b is y) or "z" (a is x, b is y), at that coordinate."""
    corners = [(a[0], b[0]), (a[1], b[0]), (a[1], b[1]), (a[0], b[1])]
    if axis == "x":
        return np.array([(at, y, z) for z, y in corners], np.float32)
    return np.array([(x, y, at) for x, y in corners], np.float32)


def disc(at: tuple[float, float, float], radius: float, *, corners: int = 16) -> Points:
    """A circle across the x axis, centred on `at`."""
    turn = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    ring = np.stack([np.zeros(corners), np.sin(turn), np.cos(turn)], axis=-1) * radius
    return (ring + at).astype(np.float32)


def _outward(corners: Points, inside: Points) -> Points:
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    if float(normal @ (corners.mean(axis=0) - inside)) < 0:
        normal = -normal
    return np.asarray(normal, np.float32)
