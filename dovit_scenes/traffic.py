"""What stands at the kerb and what moves: poles, street trees, parked and moving cars, people.

Each maker fills one slot of a stream (world.py). It always draws the same numbers in the same order and only
then decides by density what is there, so a denser street holds everything that a thinner one holds.
"""

from __future__ import annotations

import numpy as np

from dovit_scenes import light
from dovit_scenes.street import LANE, Street
from dovit_scenes.things import Bicyclist, Car, CarBody, Crossing, Pedestrian, Pole, PoleKind, Thing, Tree

KERB_SLOT = 17.0
PARKED_SLOT = 5.6
CAR_SLOT = 21.0
LEAD_SLOT = 13.0
PEDESTRIAN_SLOT = 6.5
BICYCLE_SLOT = 17.0
CROSSING_SLOT = 95.0


def kerb_side(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A lamp post or sign and perhaps a street tree, just behind the kerb."""
    x = street.kerb(side) + side * 0.45
    at, kind_draw, tree_at, pole_chance, tree_chance = rng.random(5)
    kinds = (PoleKind.ROUND_SIGN, PoleKind.TRIANGLE_SIGN, PoleKind.BOARD_SIGN, PoleKind.TRAFFIC_LIGHT)
    kind = PoleKind.LAMP if kind_draw < 0.45 else kinds[int((kind_draw - 0.45) / 0.55 * 3.999)]
    height = float(rng.uniform(6.0, 8.0)) if kind is PoleKind.LAMP else float(rng.uniform(2.9, 3.5))
    tree_height = float(rng.uniform(4.8, 7.5))
    tree = Tree(
        x=x + side * 0.35,
        s=s + KERB_SLOT * (0.5 + 0.45 * float(tree_at)),
        height=tree_height,
        spread=tree_height * float(rng.uniform(0.5, 0.66)),
        leaves=light.draw(rng, light.LEAVES, spread=0.0),
        tone=float(rng.uniform(0.84, 1.14)),
        seed=_seed(rng),
    )
    pole = Pole(x, s + KERB_SLOT * 0.45 * float(at), -side, height, kind, _seed(rng))
    out: list[Thing] = []
    if pole_chance < 0.6 + 0.35 * density:
        out.append(pole)
    if tree_chance < (0.12 + 0.25 * density) * (1.3 - street.urban):
        out.append(tree)
    return tuple(out)


def parked_car(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A car at the kerb, where the street has room for one."""
    chance, along, heading = rng.random(3)
    x = street.kerb(side) - side * (1.05 + 0.12 * float(along))
    faces = 1 if side < 0 or heading < 0.3 else -1
    car = _car(rng, x, s + PARKED_SLOT * (0.45 + 0.1 * float(along)), faces)
    return (car,) if street.has_parking(side) and chance < 0.95 * density else ()


def oncoming_car(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A car in the other lane."""
    chance, along = rng.random(2)
    car = _car(rng, LANE + 0.25 * float(along), s + CAR_SLOT * (0.2 + 0.5 * float(along)), -1)
    return (car,) if chance < 0.85 * density else ()


def leading_car(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A car ahead in the camera's lane."""
    chance, along, braking = rng.random(3)
    car = _car(rng, 0.2 * float(along), s + LEAD_SLOT * (0.2 + 0.4 * float(along)), 1, braking=bool(braking < 0.3))
    return (car,) if chance < 0.6 * density else ()


def pedestrian(
    rng: np.random.Generator, street: Street, density: float, side: int, s: float, *, heading: int, pace: float
) -> tuple[Thing, ...]:
    """Somebody on the pavement of `side`; each direction keeps to its own half of it."""
    chance, across, along = (float(value) for value in rng.random(3))
    width = abs(street.plot(side) - street.kerb(side))
    half = 0.9 + (width - 1.3) * (0.45 * across + (0.5 if heading > 0 else 0.0))
    person = Pedestrian(
        x=street.kerb(side) + side * half,
        s=s + PEDESTRIAN_SLOT * along,
        heading=heading,
        height=float(rng.uniform(1.55, 1.9)),
        top=light.draw(rng, light.CLOTHES, spread=0.2),
        trousers=light.draw(rng, light.TROUSERS, spread=0.2),
        skin=light.draw(rng, light.SKIN),
        hair=light.draw(rng, light.HAIR),
        pace=pace,
        seed=_seed(rng),
    )
    return (person,) if chance < 0.55 * density else ()


def bicyclist(
    rng: np.random.Generator, street: Street, density: float, side: int, s: float, *, heading: int, pace: float
) -> tuple[Thing, ...]:
    """Somebody on a bicycle, between the moving cars and the kerb (or the parked cars)."""
    chance, along = (float(value) for value in rng.random(2))
    x = -1.4 + 0.1 * along if heading > 0 else 1.5 * LANE - 0.15
    rider = Bicyclist(
        x=x,
        s=s + BICYCLE_SLOT * (0.1 + 0.8 * along),
        heading=heading,
        frame=light.draw(rng, light.CAR_PAINT),
        top=light.draw(rng, light.CLOTHES, spread=0.2),
        trousers=light.draw(rng, light.TROUSERS, spread=0.2),
        skin=light.draw(rng, light.SKIN),
        helmet=light.draw(rng, light.HELMETS),
        pace=pace,
        seed=_seed(rng),
    )
    return (rider,) if chance < 0.6 * density else ()


def crossing(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A zebra crossing now and then."""
    chance, along = (float(value) for value in rng.random(2))
    return (Crossing(0.0, s + 60.0 * along, 2.8),) if chance < 0.5 else ()


def _car(rng: np.random.Generator, x: float, s: float, heading: int, *, braking: bool = False) -> Car:
    draw = rng.random()
    body = CarBody.HATCHBACK if draw < 0.55 else CarBody.SALOON if draw < 0.85 else CarBody.VAN
    return Car(float(x), float(s), heading, body, light.draw(rng, light.CAR_PAINT), _seed(rng), braking)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
