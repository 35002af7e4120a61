"""What a street holds: the classes that label maps name, and frozen descriptions of all that stands or moves.

Descriptions are in metres and street coordinates (camera.py). `x` and `s` are the middle of a thing on the ground,
except where a field says otherwise; `side` is -1 on the left, 1 on the right; `footprint` is the ground that the
thing covers; `seed` draws everything about its looks that is not a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dovit_scenes.light import Colour


class SceneClass(IntEnum):
    """Class ids as label maps hold them (CamVid, 11-class version)."""

    SKY = 0
    BUILDING = 1
    POLE = 2
    ROAD = 3
    PAVEMENT = 4
    TREE = 5
    SIGN = 6
    FENCE = 7
    CAR = 8
    PEDESTRIAN = 9
    BICYCLIST = 10


CLASS_NAMES: tuple[str, ...] = tuple(member.name.lower() for member in SceneClass)
"""Class names; the position is the class id."""

IGNORE_ID = 11
"""CamVid's "void". Rendered label maps never hold it; data sets written here declare it."""

PALETTE: npt.NDArray[np.uint8] = np.array(
    [
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ],
    dtype=np.uint8,
)
"""(11, 3) uint8 RGB, CamVid's own colours."""
PALETTE.setflags(write=False)

Footprint = tuple[float, float, float, float]
"""x from, x to, s from, s to: the ground that a thing covers, metres."""


@dataclass(frozen=True)
class Building:
    """One house; `x` is its wall on the street, `s` its near end."""

    x: float
    s: float
    side: int
    length: float
    depth: float
    height: float
    roof: float
    """Metres from eaves to ridge; 0 is a flat roof."""
    wall: Colour
    tiles: Colour
    brick: bool
    shop: bool
    seed: int

    @property
    def footprint(self) -> Footprint:
        back = self.x + self.side * self.depth
        return min(self.x, back), max(self.x, back), self.s, self.s + self.length


@dataclass(frozen=True)
class Tree:
    """A tree whose crown is `spread` wide."""

    x: float
    s: float
    height: float
    spread: float
    leaves: Colour
    tone: float
    """Factor on its colours."""
    seed: int

    @property
    def footprint(self) -> Footprint:
        # Little more than the trunk: a crown hangs over what stands beside it.
        return self.x - 0.3, self.x + 0.3, self.s - 0.1, self.s + 0.1


class FenceKind(Enum):
    """How a fence is made."""

    BOARDS = "boards"
    RAILINGS = "railings"
    WALL = "wall"


@dataclass(frozen=True)
class Fence:
    """A fence along the street from `s` on."""

    x: float
    s: float
    length: float
    height: float
    kind: FenceKind
    paint: Colour
    seed: int

    @property
    def footprint(self) -> Footprint:
        return self.x - 0.05, self.x + 0.05, self.s, self.s + self.length


@dataclass(frozen=True)
class Hedge:
    """A clipped hedge with the lawn behind it; `x` is its face, `s` its near end."""

    x: float
    s: float
    side: int
    length: float
    height: float
    depth: float
    """Metres of lawn behind the face."""
    leaves: Colour
    seed: int

    @property
    def footprint(self) -> Footprint:
        # The face with a little of what is behind it: people may stand on the lawn.
        back = self.x + self.side * 0.3
        return min(self.x, back), max(self.x, back), self.s, self.s + self.length


class PoleKind(Enum):
    """What a pole carries."""

    LAMP = "lamp"
    ROUND_SIGN = "round"
    TRIANGLE_SIGN = "triangle"
    BOARD_SIGN = "board"
    TRAFFIC_LIGHT = "traffic light"


@dataclass(frozen=True)
class Pole:
    """A pole at the kerb; `side` says where the road lies."""

    x: float
    s: float
    side: int
    height: float
    kind: PoleKind
    seed: int

    @property
    def footprint(self) -> Footprint:
        return self.x - 0.1, self.x + 0.1, self.s - 0.1, self.s + 0.1


class CarBody(Enum):
    """Shapes of cars."""

    HATCHBACK = "hatchback"
    SALOON = "saloon"
    VAN = "van"


@dataclass(frozen=True)
class Car:
    """A car; `heading` is 1 with the camera, -1 against it."""

    x: float
    s: float
    heading: int
    body: CarBody
    paint: Colour
    seed: int
    braking: bool = False

    @property
    def footprint(self) -> Footprint:
        return self.x - 0.9, self.x + 0.9, self.s - 2.2, self.s + 2.2


@dataclass(frozen=True)
class Pedestrian:
    """Somebody on foot; `heading` as for cars."""

    x: float
    s: float
    heading: int
    height: float
    top: Colour
    trousers: Colour
    skin: Colour
    hair: Colour
    pace: float
    """Metres per second."""
    seed: int

    @property
    def footprint(self) -> Footprint:
        return self.x - 0.25, self.x + 0.25, self.s - 0.25, self.s + 0.25


@dataclass(frozen=True)
class Bicyclist:
    """Somebody on a bicycle; `heading` as for cars."""

    x: float
    s: float
    heading: int
    frame: Colour
    top: Colour
    trousers: Colour
    skin: Colour
    helmet: Colour
    pace: float
    seed: int

    @property
    def footprint(self) -> Footprint:
        return self.x - 0.3, self.x + 0.3, self.s - 0.9, self.s + 0.9


@dataclass(frozen=True)
class Crossing:
    """White stripes across the road, `length` metres along the street; part of the ground."""

    x: float
    s: float
    length: float

    @property
    def footprint(self) -> Footprint:
        return self.x, self.x, self.s, self.s + self.length


Thing: TypeAlias = Building | Tree | Fence | Hedge | Pole | Car | Pedestrian | Bicyclist | Crossing
