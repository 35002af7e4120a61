"""Inputs that parse: JSON with one value replaced by an odd one, which flipped bytes seldom reach."""

from __future__ import annotations

import copy
import json
import random

ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    255,
    256,
    999,
    2**31,
    2**63,
    10**9,
    10**30,
    10**4300,
    -(2**63),
    0.0,
    -0.0,
    1e-320,
    1e300,
    0.5,
)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = ("", "\x00", "\ud800", "\u202e", "\x1b[31m", "../x", "/", "x" * 3000, "1", "²", "NaN", "{}", "\r\n")
ODD_OTHERS = (None, True, False, [], {}, [[]], {"": None}, [1, 2, 3], ["a"], {"type": "LN"})

Container = dict | list


def odd(text: bytes, seed: int) -> bytes | None:
    """`text` with one or two changes, the same for the same seed; None where it is no JSON with anything in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, Container) or not value:
        return None
    draw = random.Random(seed)
    try:
        for _ in range(draw.randint(1, 2)):
            _change(value, draw)
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def _change(value: Container, draw: random.Random) -> None:
    """Change one entry somewhere in `value`: replaced, taken out, doubled, or exchanged for another one of its own."""
    entries = [(inside, key) for inside in _containers(value) for key in _keys(inside)]
    if not entries:
        return
    inside, key = draw.choice(entries)
    action = draw.random()
    if action < 0.1:
        del inside[key]
    elif action < 0.2 and isinstance(inside, list):
        inside.extend(copy.deepcopy(inside) * draw.choice((1, 7)))
    elif action < 0.35:
        other, name = draw.choice(entries)
        if name in _keys(other):
            inside[key] = copy.deepcopy(other[name])
    else:
        inside[key] = _odd_value(inside[key], draw)


def _odd_value(value: object, draw: random.Random) -> object:
    kinds = (ODD_NUMBERS, NOT_FINITE, ODD_TEXTS, ODD_OTHERS)
    # Mostly of the same type: the others are refused by the first check.
    if isinstance(value, int | float) and draw.random() < 0.7:
        return draw.choice((*ODD_NUMBERS, *NOT_FINITE))
    if isinstance(value, str) and draw.random() < 0.6:
        return draw.choice(ODD_TEXTS)
    return draw.choice(draw.choice(kinds))


def _containers(value: object) -> list[Container]:
    if not isinstance(value, Container):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for each in inner for found in _containers(each))]


def _keys(value: Container) -> list:
    return list(value) if isinstance(value, dict) else list(range(len(value)))
