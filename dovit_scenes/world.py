"""A seeded street without end, and what of it is in sight at a given moment.

Everything comes in *streams*: belts of slots that lie still or slide along the street at one speed. What a slot
holds depends on (seed, stream, slot number) alone, so any moment can be asked for by itself, nothing is stored
between frames, and memory does not grow with the length of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from dovit_scenes import slots
from dovit_scenes.camera import Camera
from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.light import Light, light_from_seed
from dovit_scenes.street import Street, street_from_seed
from dovit_scenes.things import Thing

SPEED = 6.5
"""Of the camera, metres per second."""

RANGE = 230.0
"""Metres ahead of the camera beyond which nothing is painted one by one."""

BEHIND = 32.0
"""Metres behind the camera where a long thing that is still in sight may begin."""

Maker = Callable[[np.random.Generator, Street, float, int, float], tuple[Thing, ...]]


@dataclass(frozen=True)
class World:
    """One street: everything about it follows from `seed`, `density` and `share`."""

    seed: int
    density: float
    """0: an empty road; 1: a crowded one."""
    street: Street
    light: Light
    share: float = 1.0
    """Of all that would stand or move there, what does, houses included; 0: nothing but ground and sky."""


def world_from_seed(seed: int, *, density: float = 0.5, share: float = 1.0) -> World:
    """The street number `seed`; the same arguments give the same street everywhere.

    Raises:
        SceneArgumentError: a negative seed, or a density or share outside 0..1.
    """
    refuse_negative(seed)
    if not 0.0 <= density <= 1.0:
        raise SceneArgumentError(f"density {density} is outside 0..1 (0 is an empty road, 1 a crowded one)")
    if not 0.0 <= share <= 1.0:
        raise SceneArgumentError(f"share {share} is outside 0..1 (0 is a bare road, at 1 nothing is left out)")
    rng = np.random.default_rng([seed, 0])
    return World(seed, float(density), street_from_seed(rng), light_from_seed(rng), float(share))


def refuse_negative(seed: int) -> None:
    """Raises SceneArgumentError for a seed that NumPy does not take."""
    if seed < 0:
        raise SceneArgumentError(f"seed {seed} is negative; take 0 or more")


def camera_at(world: World, time_s: float, *, size: tuple[int, int]) -> Camera:
    """Where the camera is after `time_s` seconds; `size` is (height, width) in pixels."""
    height, width = size
    # A car's springs: two slow swings that do not repeat together.
    pitch = 0.0022 * math.sin(2.1 * time_s) + 0.0012 * math.sin(5.3 * time_s + 1.0)
    return Camera(
        width=width,
        height=height,
        s=SPEED * time_s,
        x=0.12 * math.sin(0.31 * time_s),
        elevation=1.4,
        pitch=pitch,
        bend=world.street.bend,
        side=world.street.side,
    )


def things_in_sight(world: World, time_s: float, *, driven_s: float | None = None) -> list[Thing]:
    """All things that may show at `time_s` seconds, where they are then, in no particular order.

    `driven_s`: for how many seconds the camera has driven until then; None: all of the time.
    """
    camera_s = SPEED * (time_s if driven_s is None else driven_s)
    out: list[Thing] = []
    for number, stream in enumerate(STREAMS):
        moved = stream.travelled(time_s)
        # In the belt's own coordinates, which have moved along with it.
        first = math.floor((camera_s - BEHIND - moved) / stream.slot)
        last = math.floor((camera_s + RANGE - moved) / stream.slot)
        for slot in range(first, last + 1):
            for thing in things_in_slot(world, number, slot):
                # What lies still is handed on as it is, and stays the same object from frame to frame.
                placed = replace(thing, s=thing.s + moved) if moved else thing
                _, _, near, far = placed.footprint
                if far > camera_s and near < camera_s + RANGE:
                    out.append(placed)
    return out


# A few frames' worth of slots: what is in sight is asked for again in the next frame.
@lru_cache(maxsize=8192)
def things_in_slot(world: World, number: int, slot: int) -> tuple[Thing, ...]:
    """What slot `slot` of stream `number` holds, at time 0."""
    stream = STREAMS[number]
    if slot < stream.first:
        return ()
    # Slot numbers of belts that come towards the camera or start behind it are negative; a seed must not be.
    code = 2 * abs(slot) + (slot < 0)
    rng = np.random.default_rng([world.seed, 1 + number, code])
    things = stream.fill(rng, world.street, world.density, stream.side, slot * stream.slot)
    # Drawn after everything else, so that leaving things out changes nothing about those that stay.
    return tuple(thing for thing, draw in zip(things, rng.random(len(things)), strict=True) if draw < world.share)


@dataclass(frozen=True)
class Stream:
    """A belt of slots: who fills a slot, how long one is (metres), how fast the belt slides (metres per second)."""

    name: str
    fill: Maker
    side: int
    slot: float
    pace: float = 0.0
    surge: float = 0.0
    """Metres by which the belt swings back and forth around its even motion."""
    first: float = -math.inf
    """Slots before this one stay empty: a car in the camera's own lane starts ahead of it."""

    def travelled(self, time_s: float) -> float:
        """Metres that the belt has moved since time 0."""
        return self.pace * time_s + self.surge * math.sin(0.45 * time_s)


def _walkers(side: int, pace: float) -> Stream:
    fill = partial(slots.pedestrian, heading=1 if pace > 0 else -1, pace=abs(pace))
    return Stream("pedestrians", fill, side, slots.PEDESTRIAN_SLOT, pace=pace)


def _riders(pace: float) -> Stream:
    heading = 1 if pace > 0 else -1
    fill = partial(slots.bicyclist, heading=heading, pace=abs(pace))
    return Stream("bicyclists", fill, -heading, slots.BICYCLE_SLOT, pace=pace)


STREAMS: tuple[Stream, ...] = (
    *(Stream("plots", slots.plot, side, slots.PLOT_SLOT) for side in (-1, 1)),
    *(Stream("kerb", slots.kerb_side, side, slots.KERB_SLOT) for side in (-1, 1)),
    *(Stream("parked", slots.parked_car, side, slots.PARKED_SLOT) for side in (-1, 1)),
    Stream("oncoming", slots.oncoming_car, 1, slots.CAR_SLOT, pace=-8.0),
    Stream("leading", slots.leading_car, -1, slots.LEAD_SLOT, pace=SPEED, surge=2.5, first=1),
    *(_walkers(side, pace) for side in (-1, 1) for pace in (1.25, -1.4)),
    _riders(4.4),
    _riders(-4.0),
    Stream("crossings", slots.crossing, 1, slots.CROSSING_SLOT),
)
"""Their order is part of the world: a slot's seed holds the stream's number."""
