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
from itertools import pairwise

import numpy as np

from dovit_scenes import light, traffic
from dovit_scenes.camera import Camera
from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.light import Light, light_from_seed
from dovit_scenes.street import Street, street_from_seed
from dovit_scenes.things import Building, Fence, FenceKind, Hedge, Thing, Tree

# What stands behind the pavement: terraces, houses in gardens, and little parks, one slot of street at a time.

SLOT = 26.0
"""Metres of street per slot."""


def fill_plot(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Everything behind the pavement of `side` between `s` and `s + SLOT` metres."""
    kind = rng.random()
    if kind < 0.25 + 0.65 * street.urban:
        return _terrace(rng, street, side, s)
    if kind < 0.75 + 0.2 * street.urban:
        return _house_in_garden(rng, street, side, s)
    return _park(rng, street, side, s)


def _terrace(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Houses wall to wall at the pavement; now and then a gap with a fence and a tree."""
    cuts = np.cumsum(rng.uniform(0.7, 1.3, int(rng.integers(2, 4))))
    ends = s + SLOT * np.concatenate([[0.0], cuts / cuts[-1]])
    out: list[Thing] = []
    for near, far in pairwise(ends):
        if rng.random() < 0.1:
            out += _gap(rng, street, side, float(near), float(far))
        else:
            out.append(_building(rng, street.plot(side), side, float(near), float(far), urban=street.urban))
    return tuple(out)


def _building(rng: np.random.Generator, x: float, side: int, near: float, far: float, *, urban: float) -> Building:
    storeys = int(rng.integers(2, 3 + round(2.4 * urban)))
    brick = bool(rng.random() < 0.6)
    return Building(
        x=x,
        s=near,
        side=side,
        length=far - near,
        depth=float(rng.uniform(8.0, 12.0)),
        height=storeys * float(rng.uniform(2.8, 3.3)) + 0.5,
        roof=float(rng.uniform(2.0, 3.6)) if rng.random() < 0.7 else 0.0,
        wall=light.draw(rng, light.BRICK if brick else light.PLASTER),
        tiles=light.draw(rng, light.ROOF_TILES),
        brick=brick,
        shop=bool(rng.random() < 0.75 * urban - 0.15),
        seed=_seed(rng),
    )


def _gap(rng: np.random.Generator, street: Street, side: int, near: float, far: float) -> list[Thing]:
    x = street.plot(side)
    middle = (near + far) / 2
    return [
        _tree(rng, x + side * 4.0, middle + float(rng.uniform(-1.5, 1.5))),
        _hedge(rng, x + side * 6.5, side, near, far, height=2.6),
        _fence(rng, x, near, far),
    ]


def _house_in_garden(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Detached houses set back behind a fence or hedge, a tree between them."""
    x = street.plot(side)
    back = x + side * float(rng.uniform(4.0, 7.0))
    half = SLOT / 2
    houses = [_building(rng, back, side, s + k * half + 1.0, s + k * half + 11.0, urban=0.0) for k in range(2)]
    trees = [_tree(rng, x + side * 2.6, s + k * half + float(rng.uniform(0.5, 9.0))) for k in range(2)]
    kept = trees if rng.random() < 0.6 else trees[:1]
    hedges = [_hedge(rng, x + side * 0.4, side, s, s + SLOT, height=float(rng.uniform(0.9, 1.3)))]
    return (*houses, *kept, *hedges, _fence(rng, x, s, s + SLOT))


def _park(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Trees in two loose rows behind railings."""
    x = street.plot(side)
    rows = [(3.0, 3), (7.5, 4), (13.0, 4)]
    trees = [
        _tree(rng, x + side * (out + float(rng.uniform(-0.8, 0.8))), s + SLOT * (k + float(rng.uniform(0, 1))) / n)
        for out, n in rows
        for k in range(n)
    ]
    far_hedge = _hedge(rng, x + side * 16.0, side, s, s + SLOT, height=3.2)
    near_hedge = _hedge(rng, x + side * 0.6, side, s, s + SLOT, height=0.7)
    return (*trees, far_hedge, near_hedge, _fence(rng, x, s, s + SLOT, kinds=(FenceKind.RAILINGS,)))


def _tree(rng: np.random.Generator, x: float, s: float) -> Tree:
    height = float(rng.uniform(5.5, 10.0))
    return Tree(
        x=x,
        s=s,
        height=height,
        spread=height * float(rng.uniform(0.5, 0.72)),
        leaves=light.draw(rng, light.LEAVES, spread=0.0),
        tone=float(rng.uniform(0.84, 1.14)),
        seed=_seed(rng),
    )


def _hedge(rng: np.random.Generator, x: float, side: int, near: float, far: float, *, height: float) -> Hedge:
    leaves = light.draw(rng, light.LEAVES, spread=0.12)
    return Hedge(x, near, side, far - near, height, depth=12.0, leaves=leaves, seed=_seed(rng))


def _fence(
    rng: np.random.Generator, x: float, near: float, far: float, *, kinds: tuple[FenceKind, ...] = tuple(FenceKind)
) -> Fence:
    kind = kinds[int(rng.integers(len(kinds)))]
    paint = light.draw(rng, light.BRICK if kind is FenceKind.WALL else light.FENCE_PAINT)
    if kind is FenceKind.RAILINGS:
        paint = (52.0, 56.0, 58.0)
    return Fence(x, near, far - near, float(rng.uniform(0.95, 1.5)), kind, paint, _seed(rng))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


SPEED = 6.5
"""Of the camera, metres per second."""

RANGE = 230.0
"""Metres ahead of the camera beyond which nothing is painted one by one."""

BEHIND = 32.0
"""Metres behind the camera where a long thing that is still in sight may begin."""

Maker = Callable[[np.random.Generator, Street, float, int, float], tuple[Thing, ...]]


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
    if seed < 0:
        raise SceneArgumentError(f"seed {seed} is negative; take 0 or more")
    if not 0.0 <= density <= 1.0:
        raise SceneArgumentError(f"density {density} is outside 0..1 (0 is an empty road, 1 a crowded one)")
    if not 0.0 <= share <= 1.0:
        raise SceneArgumentError(f"share {share} is outside 0..1 (0 is a bare road, at 1 nothing is left out)")
    rng = np.random.default_rng([seed, 0])
    return World(seed, float(density), street_from_seed(rng), light_from_seed(rng), float(share))


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


def things_in_sight(world: World, time_s: float) -> list[Thing]:
    """All things that may show at `time_s` seconds, where they are then, in no particular order."""
    camera_s = SPEED * time_s
    out: list[Thing] = []
    for number, stream in enumerate(STREAMS):
        moved = stream.travelled(time_s)
        first = math.floor((camera_s - BEHIND - moved) / stream.slot)
        last = math.floor((camera_s + RANGE - moved) / stream.slot)
        for slot in range(first, last + 1):
            for thing in things_in_slot(world, number, slot):
                placed = replace(thing, s=thing.s + moved) if moved else thing
                _, _, near, far = placed.footprint
                if far > camera_s and near < camera_s + RANGE:
                    out.append(placed)
    return out


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


def _fill_plot(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """Houses and gardens are the same at every density."""
    return fill_plot(rng, street, side, s)


def _walkers(side: int, pace: float) -> Stream:
    fill = partial(traffic.pedestrian, heading=1 if pace > 0 else -1, pace=abs(pace))
    return Stream("pedestrians", fill, side, traffic.PEDESTRIAN_SLOT, pace=pace)


def _riders(pace: float) -> Stream:
    heading = 1 if pace > 0 else -1
    fill = partial(traffic.bicyclist, heading=heading, pace=abs(pace))
    return Stream("bicyclists", fill, -heading, traffic.BICYCLE_SLOT, pace=pace)


STREAMS: tuple[Stream, ...] = (
    *(Stream("plots", _fill_plot, side, SLOT) for side in (-1, 1)),
    *(Stream("kerb", traffic.kerb_side, side, traffic.KERB_SLOT) for side in (-1, 1)),
    *(Stream("parked", traffic.parked_car, side, traffic.PARKED_SLOT) for side in (-1, 1)),
    Stream("oncoming", traffic.oncoming_car, 1, traffic.CAR_SLOT, pace=-8.0),
    Stream("leading", traffic.leading_car, -1, traffic.LEAD_SLOT, pace=SPEED, surge=2.5, first=1),
    *(_walkers(side, pace) for side in (-1, 1) for pace in (1.25, -1.4)),
    _riders(4.4),
    _riders(-4.0),
    Stream("crossings", traffic.crossing, 1, traffic.CROSSING_SLOT),
)
"""Their order is part of the world: a slot's seed holds the stream's number."""
