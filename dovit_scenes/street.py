"""The street itself, without what stands in it: kerbs, lanes, building lines, bends; metres (camera.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dovit_scenes.camera import Bend

LANE = 3.3
"""Width of a lane."""

BAY = 2.1
"""Width of a row of parked cars."""


@dataclass(frozen=True)
class Street:
    """Cross-section of one street; the camera's lane is centred on x = 0, oncoming traffic on its right."""

    side: int
    """1: traffic keeps left; -1: the whole street mirrored."""
    parking: tuple[bool, bool]
    """Is there a row of parked cars: on the left, on the right."""
    pavement: tuple[float, float]
    """Width of the pavements."""
    bend: Bend
    asphalt: float
    """Grey of the road, 0..255."""
    urban: float
    """0 (gardens and trees) to 1 (shops and terraces)."""

    @property
    def centre(self) -> float:
        """x of the line between the two directions."""
        return LANE / 2

    @property
    def kerbs(self) -> tuple[float, float]:
        """x of the kerbs."""
        left, right = (BAY * parked for parked in self.parking)
        return -LANE / 2 - 0.1 - left, LANE * 1.5 + 0.1 + right

    @property
    def plots(self) -> tuple[float, float]:
        """x of the lines behind the pavements, where houses and gardens begin."""
        return self.kerbs[0] - self.pavement[0], self.kerbs[1] + self.pavement[1]

    def kerb(self, side: int) -> float:
        """x of the kerb on `side` (-1 or 1)."""
        return self.kerbs[(side + 1) // 2]

    def plot(self, side: int) -> float:
        """x of the plot line on `side` (-1 or 1)."""
        return self.plots[(side + 1) // 2]

    def has_parking(self, side: int) -> bool:
        """Is there a row of parked cars on `side`?"""
        return self.parking[(side + 1) // 2]


def street_from_seed(rng: np.random.Generator) -> Street:
    """Draw a street of two lanes."""
    return Street(
        side=int(rng.choice([-1, 1])),
        parking=(bool(rng.random() < 0.55), bool(rng.random() < 0.7)),
        pavement=(float(rng.uniform(2.2, 3.4)), float(rng.uniform(2.2, 3.6))),
        bend=Bend(
            amplitude=float(rng.uniform(1.0, 9.0)),
            length=float(rng.uniform(60.0, 85.0)),
            phase=float(rng.uniform(0.0, 2 * np.pi)),
        ),
        asphalt=float(rng.uniform(92.0, 122.0)),
        urban=float(rng.uniform(0.1, 0.95)),
    )
