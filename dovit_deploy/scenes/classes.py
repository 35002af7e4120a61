"""The eleven CamVid classes: ids, names and the colours in which label maps are shown."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


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
