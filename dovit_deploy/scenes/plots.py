"""What stands behind the pavement: terraces, houses in gardens, and little parks, one slot of street at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dovit_deploy.scenes import colours
from dovit_deploy.scenes.street import Street
from dovit_deploy.scenes.things import Building, Fence, FenceKind, Hedge, Thing, Tree

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
        wall=colours.draw(rng, colours.BRICK if brick else colours.PLASTER),
        tiles=colours.draw(rng, colours.ROOF_TILES),
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
        leaves=colours.draw(rng, colours.LEAVES, spread=0.0),
        tone=float(rng.uniform(0.84, 1.14)),
        seed=_seed(rng),
    )


def _hedge(rng: np.random.Generator, x: float, side: int, near: float, far: float, *, height: float) -> Hedge:
    leaves = colours.draw(rng, colours.LEAVES, spread=0.12)
    return Hedge(x, near, side, far - near, height, depth=12.0, leaves=leaves, seed=_seed(rng))


def _fence(
    rng: np.random.Generator, x: float, near: float, far: float, *, kinds: tuple[FenceKind, ...] = tuple(FenceKind)
) -> Fence:
    kind = kinds[int(rng.integers(len(kinds)))]
    paint = colours.draw(rng, colours.BRICK if kind is FenceKind.WALL else colours.FENCE_PAINT)
    if kind is FenceKind.RAILINGS:
        paint = (52.0, 56.0, 58.0)
    return Fence(x, near, far - near, float(rng.uniform(0.95, 1.5)), kind, paint, _seed(rng))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
