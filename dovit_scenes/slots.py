"""What fills a slot of the street (world.py): houses and gardens, poles and trees at the kerb, cars and people.

Each public function fills one slot, `NAME_SLOT` metres long, from `s` metres on. It always draws the same
numbers in the same order and only then decides by density what is there, so a denser street holds everything that a
thinner one holds.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dovit_scenes import light
from dovit_scenes.street import LANE, Street
from dovit_scenes.things import (
    Bicyclist,
    Building,
    Car,
    CarBody,
    Crossing,
    Fence,
    FenceKind,
    Hedge,
    Pedestrian,
    Pole,
    PoleKind,
    Thing,
    Tree,
)

KERB_SLOT = 17.0
PARKED_SLOT = 5.6
CAR_SLOT = 21.0
LEAD_SLOT = 13.0
PEDESTRIAN_SLOT = 6.5
BICYCLE_SLOT = 17.0
CROSSING_SLOT = 95.0
PLOT_SLOT = 26.0


def plot(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """Everything behind the pavement: a terrace, houses in gardens or a little park, the same at every density."""
    kind = rng.random()
    if kind < 0.25 + 0.65 * street.urban:
        return _terrace(rng, street, side, s)
    if kind < 0.75 + 0.2 * street.urban:
        return _house_in_garden(rng, street, side, s)
    return _park(rng, street, side, s)


def kerb_side(rng: np.random.Generator, street: Street, density: float, side: int, s: float) -> tuple[Thing, ...]:
    """A lamp post or sign and perhaps a street tree, just behind the kerb."""
    x = street.kerb(side) + side * 0.45
    at, kind_draw, tree_at, pole_chance, tree_chance = rng.random(5)
    kinds = (PoleKind.ROUND_SIGN, PoleKind.TRIANGLE_SIGN, PoleKind.BOARD_SIGN, PoleKind.TRAFFIC_LIGHT)
    kind = PoleKind.LAMP if kind_draw < 0.45 else kinds[int((kind_draw - 0.45) / 0.55 * 3.999)]
    height = float(rng.uniform(6.0, 8.0)) if kind is PoleKind.LAMP else float(rng.uniform(2.9, 3.5))
    tree_s = s + KERB_SLOT * (0.5 + 0.45 * float(tree_at))
    tree = _tree(rng, x + side * 0.35, tree_s, heights=(4.8, 7.5), widest=0.66)
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
    # Kerb to the middle of a car, and a little carelessness.
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
    # At least 0.9 m from the kerb, where poles and trees stand.
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
    # Keeps left of the camera's car in its lane, or at the far edge of the other one.
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


def _terrace(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Houses wall to wall at the pavement; now and then a gap with a fence and a tree."""
    cuts = np.cumsum(rng.uniform(0.7, 1.3, int(rng.integers(2, 4))))
    ends = s + PLOT_SLOT * np.concatenate([[0.0], cuts / cuts[-1]])
    out: list[Thing] = []
    for near, far in pairwise(ends):
        if rng.random() < 0.1:
            out += _gap(rng, street, side, float(near), float(far))
        else:
            out.append(_building(rng, street.plot(side), side, float(near), float(far), urban=street.urban))
    return tuple(out)


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
    half = PLOT_SLOT / 2
    houses = [_building(rng, back, side, s + k * half + 1.0, s + k * half + 11.0, urban=0.0) for k in range(2)]
    # Both are drawn even where one is kept: what follows must not depend on the choice.
    trees = [_tree(rng, x + side * 2.6, s + k * half + float(rng.uniform(0.5, 9.0))) for k in range(2)]
    kept = trees if rng.random() < 0.6 else trees[:1]
    hedges = [_hedge(rng, x + side * 0.4, side, s, s + PLOT_SLOT, height=float(rng.uniform(0.9, 1.3)))]
    return (*houses, *kept, *hedges, _fence(rng, x, s, s + PLOT_SLOT))


def _park(rng: np.random.Generator, street: Street, side: int, s: float) -> tuple[Thing, ...]:
    """Trees in two loose rows behind railings."""
    x = street.plot(side)
    rows = [(3.0, 3), (7.5, 4), (13.0, 4)]
    trees = [
        _tree(rng, x + side * (out + float(rng.uniform(-0.8, 0.8))), s + PLOT_SLOT * (k + float(rng.uniform(0, 1))) / n)
        for out, n in rows
        for k in range(n)
    ]
    far_hedge = _hedge(rng, x + side * 16.0, side, s, s + PLOT_SLOT, height=3.2)
    near_hedge = _hedge(rng, x + side * 0.6, side, s, s + PLOT_SLOT, height=0.7)
    return (*trees, far_hedge, near_hedge, _fence(rng, x, s, s + PLOT_SLOT, kinds=(FenceKind.RAILINGS,)))


def _building(rng: np.random.Generator, x: float, side: int, near: float, far: float, *, urban: float) -> Building:
    # Two in gardens, up to four in the city.
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


def _tree(
    rng: np.random.Generator, x: float, s: float, *, heights: tuple[float, float] = (5.5, 10.0), widest: float = 0.72
) -> Tree:
    """A tree whose crown is between half and `widest` of its height across."""
    height = float(rng.uniform(*heights))
    return Tree(
        x=x,
        s=s,
        height=height,
        spread=height * float(rng.uniform(0.5, widest)),
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


def _car(rng: np.random.Generator, x: float, s: float, heading: int, *, braking: bool = False) -> Car:
    draw = rng.random()
    body = CarBody.HATCHBACK if draw < 0.55 else CarBody.SALOON if draw < 0.85 else CarBody.VAN
    return Car(float(x), float(s), heading, body, light.draw(rng, light.CAR_PAINT), _seed(rng), braking)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
