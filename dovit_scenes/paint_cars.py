"""Cars: three shapes built from a lower body, a cabin of glass, wheels, lamps and plates.

A shape is a mesh of flat faces, built once in its own coordinates, then placed, culled, lit and painted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovit_scenes.camera import Points
from dovit_scenes.canvas import Canvas
from dovit_scenes.things import Car, CarBody, SceneClass

WHEEL = 0.31
"""Radius, metres."""

ROUNDED = 0.93
"""Width of a body at its ends, against its width elsewhere."""

Face = tuple[Points, str]
"""Corners (n, 3) in metres (x right, y up, z forward) and the name of what it is made of."""

Profile = list[tuple[float, float]]


def paint_car(canvas: Canvas, thing: Car) -> None:
    """Paint a car; its mesh is shared by all cars of its shape."""
    # Half a car length: the nearest point decides whether it is counted.
    depth = thing.s - 2.2 - canvas.camera.s
    number = canvas.claim(SceneClass.CAR, depth)
    car_mesh(thing.body).paint(canvas, (thing.x, thing.s), thing.heading, _colours(canvas, thing), number)


def _colours(canvas: Canvas, thing: Car) -> dict[str, npt.NDArray[np.float32]]:
    paint = np.asarray(thing.paint, np.float32)
    sky = np.asarray(canvas.light.haze, np.float32)
    yellow = thing.heading > 0
    return {
        "paint": paint,
        # The belt catches the sky, the lower half the road.
        "upper": paint + (sky - paint) * 0.13,
        "lower": paint * 0.82,
        "roof": paint + (sky - paint) * 0.2,
        "glass": np.array([58.0, 66.0, 74.0], np.float32) * 0.8 + sky * 0.12,
        # Screens mirror the sky towards their top and show the dark inside below.
        "glass low": np.array([30.0, 33.0, 37.0], np.float32) + sky * 0.04,
        "glass middle": np.array([36.0, 41.0, 46.0], np.float32) + sky * 0.14,
        "glass high": np.array([38.0, 45.0, 52.0], np.float32) + sky * 0.3,
        "plastic": np.array([44.0, 45.0, 47.0], np.float32),
        "dark": np.array([22.0, 22.0, 24.0], np.float32),
        "tyre": np.array([34.0, 34.0, 36.0], np.float32),
        "hub": np.array([158.0, 160.0, 164.0], np.float32),
        "lamp rear": np.array([250.0, 44.0, 34.0] if thing.braking else [156.0, 28.0, 30.0], np.float32),
        "lamp amber": np.array([214.0, 128.0, 40.0], np.float32),
        "lamp front": np.array([214.0, 220.0, 222.0], np.float32),
        "rear plate": np.array([222.0, 184.0, 52.0] if yellow else [226.0, 226.0, 222.0], np.float32),
        "front plate": np.array([228.0, 228.0, 224.0], np.float32),
    }


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
        foot: tuple[float, float],
        heading: int,
        colours: dict[str, npt.NDArray[np.float32]],
        number: int,
    ) -> None:
        """Paint the body whose middle stands at `foot` (x, s); `colours` (3,) RGB per material, before light."""
        # A heading of -1 is half a turn: both horizontal axes change sign.
        turn = np.array([heading, 1.0, heading], np.float32)
        view = canvas.camera.view(self.points * turn + np.array([foot[0], 0.0, foot[1]]))
        normals = self.normals * turn
        first = view[list(self.cuts[:-1])]
        # A face shows when it is turned towards the camera, which is the origin of view coordinates.
        shown = np.flatnonzero((normals * first).sum(axis=1) < 0)
        lights = canvas.light.on(normals)
        faces = [view[self.cuts[index] : self.cuts[index + 1]] for index in shown]
        tones = [
            # Lamps shine by themselves.
            colours[material] * (1.0 if material.startswith("lamp") else lights[index])
            for index, material in ((index, self.materials[index]) for index in shown)
        ]
        canvas.fill_body(faces, tones, number)


@lru_cache(maxsize=len(CarBody))
def car_mesh(body: CarBody) -> Mesh:
    """The shape `body`, centred on the ground under the car, front towards +z."""
    half, lower, cabin = _shapes(body)
    belt = max(y for _, y in lower)
    inside = np.array([0.0, 0.6, 0.0], np.float32)
    above = np.array([0.0, belt + 0.25, float(np.mean([z for z, _ in cabin]))], np.float32)
    # Corners are rounded off: the body is narrower at its very ends.
    tips = (lower[1][0], lower[-2][0])
    waist = [half * (ROUNDED if z <= tips[0] + 0.09 or z >= tips[1] - 0.09 else 1.0) for z, _ in lower]
    body_faces = prism(lower, waist, "paint")
    widths = [half * (0.98 if y <= belt + 0.02 else 0.79) for _, y in cabin]
    cabin_faces = prism(cabin, widths, "roof")
    return mesh_from_parts(
        [
            (inside, _under(half, lower)),
            (inside, body_faces),
            (inside, _trim(half, lower, belt)),
            (inside, _wheels(half, lower)),
            # Before the cabin, which hides the mirror on its other side.
            *_mirrors(half, belt, front=cabin[-1][0] - 0.12),
            (above, cabin_faces),
            (above, _windows(cabin_faces)),
        ]
    )


def _shapes(body: CarBody) -> tuple[float, Profile, Profile]:
    """Half the width; side view of the lower body; side view of the cabin: (z, y) in metres."""
    match body:
        case CarBody.HATCHBACK:
            lower = [
                (-1.95, 0.3),
                (-1.98, 0.62),
                (-1.9, 0.95),
                (0.85, 0.93),
                (1.85, 0.76),
                (1.98, 0.55),
                (1.94, 0.27),
            ]
            return 0.84, lower, [(-1.86, 0.94), (-1.5, 1.4), (-0.9, 1.47), (0.15, 1.45), (1.0, 0.92)]
        case CarBody.SALOON:
            lower = [(-2.2, 0.32), (-2.24, 0.7), (-2.12, 0.93), (0.9, 0.93), (2.05, 0.76), (2.2, 0.55), (2.16, 0.28)]
            return 0.87, lower, [(-1.75, 0.93), (-1.05, 1.4), (-0.5, 1.44), (0.2, 1.42), (1.05, 0.92)]
        case CarBody.VAN:
            lower = [(-2.2, 0.34), (-2.22, 0.8), (-2.2, 1.08), (1.2, 1.06), (2.0, 0.92), (2.2, 0.62), (2.16, 0.3)]
            return 0.92, lower, [(-2.2, 1.07), (-2.08, 1.92), (-1.6, 1.98), (0.6, 1.96), (1.45, 1.05)]


def _under(half: float, lower: Profile) -> list[Face]:
    """The dark behind the sills and bumpers, down to a hand above the road."""
    back, front = lower[0][0] + 0.1, lower[-1][0] - 0.1
    return [
        (rectangle("z", back, (-half + 0.06, half - 0.06), (0.16, 0.45)), "dark"),
        (rectangle("z", front, (-half + 0.06, half - 0.06), (0.14, 0.45)), "dark"),
        (rectangle("x", -half + 0.04, (back, front), (0.18, 0.45)), "dark"),
        (rectangle("x", half - 0.04, (back, front), (0.18, 0.45)), "dark"),
        *(
            (rectangle("z", z, (side * half - side * 0.24, side * half - side * 0.02), (0.0, 0.4)), "tyre")
            for z in (back + 0.3, front - 0.3)
            for side in (-1, 1)
        ),
    ]


def _trim(half: float, lower: Profile, belt: float) -> list[Face]:
    """Bands along the flanks, bumpers, lamps, plates, a grille."""
    faces: list[Face] = []
    back, front = lower[0][0], lower[-1][0]
    for x in (-half - 0.005, half + 0.005):
        faces += [
            (rectangle("x", x, (back + 0.12, 0.8), (belt - 0.2, belt - 0.05)), "upper"),
            (rectangle("x", x, (back + 0.05, front - 0.05), (0.3, 0.5)), "lower"),
            (rectangle("x", x, (back + 0.05, front - 0.05), (0.26, 0.33)), "plastic"),
            *((rectangle("x", x, (z - 0.012, z + 0.012), (0.42, belt - 0.04)), "plastic") for z in (-0.65, 0.35)),
            (rectangle("x", x, (-0.5, -0.36), (belt - 0.16, belt - 0.12)), "plastic"),
        ]
    faces += _ends(half, lower)
    return faces


def _ends(half: float, lower: Profile) -> list[Face]:
    """Bumper, plate and lamps behind and in front."""
    rear, nose = min(z for z, _ in lower) - 0.01, max(z for z, _ in lower) + 0.01
    top, end = lower[1][1], ROUNDED * half
    faces: list[Face] = [
        (rectangle("z", rear, (-end, end), (0.3, 0.47)), "lower"),
        (rectangle("z", rear - 0.003, (-end, end), (0.455, 0.475)), "plastic"),
        (rectangle("z", rear, (-end + 0.05, end - 0.05), (0.28, 0.36)), "plastic"),
        (rectangle("z", rear - 0.005, (-0.27, 0.27), (0.5, 0.61)), "rear plate"),
        (rectangle("z", nose, (-end, end), (0.46, 0.48)), "plastic"),
        (rectangle("z", nose, (-end + 0.03, end - 0.03), (0.26, 0.37)), "plastic"),
        (rectangle("z", nose, (-0.36, 0.36), (0.52, 0.63)), "dark"),
        (rectangle("z", nose + 0.002, (-0.36, 0.36), (0.565, 0.58)), "hub"),
        (rectangle("z", nose + 0.005, (-0.27, 0.27), (0.38, 0.48)), "front plate"),
    ]
    for side in (-1, 1):
        outer, inner = side * (end - 0.02), side * (end - 0.2)
        faces += [
            (rectangle("z", rear - 0.005, (inner, outer), (top - 0.04, top + 0.19)), "lamp rear"),
            (rectangle("z", rear - 0.008, (inner, outer), (top + 0.01, top + 0.06)), "lamp amber"),
            (rectangle("z", nose + 0.002, (side * (end - 0.4), outer), (0.5, 0.67)), "dark"),
            (rectangle("z", nose + 0.005, (side * (end - 0.37), side * (end - 0.1)), (0.52, 0.65)), "lamp front"),
            (rectangle("z", nose + 0.005, (side * (end - 0.09), outer), (0.53, 0.64)), "lamp amber"),
        ]
    return faces


def _wheels(half: float, lower: Profile) -> list[Face]:
    """Arch, tyre and hub on both flanks."""
    faces: list[Face] = []
    for side in (-1, 1):
        for z in (lower[0][0] + 0.72, lower[-1][0] - 0.78):
            x = side * (half + 0.008)
            faces += [
                (_arch((x, WHEEL, z)), "dark"),
                (disc((x + side * 0.002, WHEEL, z), WHEEL), "tyre"),
                (disc((x + side * 0.004, WHEEL, z), WHEEL * 0.62), "hub"),
                (disc((x + side * 0.006, WHEEL, z), WHEEL * 0.2), "plastic"),
            ]
    return faces


def _arch(at: tuple[float, float, float]) -> Points:
    turn = np.linspace(0.0, np.pi, 9)
    ring = np.stack([np.zeros(9), np.sin(turn), np.cos(turn)], axis=-1) * (WHEEL + 0.07)
    return (ring + at).astype(np.float32)


def _windows(cabin: list[Face]) -> list[Face]:
    """Panes a little smaller than the cabin's faces: screens at both ends, two side windows each."""
    rear, flanks, screen = cabin[0][0], cabin[-2:], cabin[-4][0]
    panes = [*_bands(_inset(rear, 0.86)), *_bands(_inset(screen, 0.88))]
    for side, _ in flanks:
        shrunk = _inset(side, 0.84)
        panes.append((shrunk, "glass"))
        middle = float(side[:, 2].mean()) - 0.1
        low, high = float(shrunk[:, 1].min()), float(shrunk[:, 1].max())
        bottom, top = shrunk[np.argmin(shrunk[:, 1])], shrunk[np.argmax(shrunk[:, 1])]
        pillar = np.array(
            [
                (bottom[0] * 1.004, low, middle - 0.05),
                (bottom[0] * 1.004, low, middle + 0.05),
                (top[0] * 1.004, high, middle + 0.05),
                (top[0] * 1.004, high, middle - 0.05),
            ],
            np.float32,
        )
        panes.append((pillar, "paint"))
    return panes


def _bands(pane: Points) -> list[Face]:
    """A screen in three bands; `pane` (4, 3) has its first two and its last two corners on one level."""
    order = pane if pane[0, 1] < pane[2, 1] else pane[[2, 3, 0, 1]]
    low, high = order[[0, 1]], order[[3, 2]]
    levels = [low + (high - low) * share for share in (0.0, 0.3, 0.62, 1.0)]
    names = ("glass low", "glass middle", "glass high")
    return [
        (np.concatenate([under, over[::-1]]), name)
        for under, over, name in zip(levels[:-1], levels[1:], names, strict=True)
    ]


def _mirrors(half: float, belt: float, *, front: float) -> list[tuple[Points, list[Face]]]:
    """A wing mirror on each side, a flat box of its own."""
    parts: list[tuple[Points, list[Face]]] = []
    for side in (-1, 1):
        across = (side * half * 0.97, side * (half + 0.16))
        faces = [
            (rectangle("z", front - 0.06, across, (belt, belt + 0.13)), "glass middle"),
            (rectangle("z", front + 0.06, across, (belt, belt + 0.13)), "lower"),
        ]
        parts.append((np.array([side * half, belt, front], np.float32), faces))
    return parts


def _inset(face: Points, share: float) -> Points:
    """`face` shrunk towards its middle."""
    middle = face.mean(axis=0)
    return np.asarray(middle + (face - middle) * share, np.float32)


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


def _outward(corners: Points, inside: Points) -> Points:
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    # A face that is almost a line has no direction; the bound keeps it finite.
    normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    # Corners may be given in either direction; the point inside decides.
    if float(normal @ (corners.mean(axis=0) - inside)) < 0:
        normal = -normal
    return np.asarray(normal, np.float32)


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
