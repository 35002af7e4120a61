"""Lamp posts, traffic signs and traffic lights: the post is of class pole, what it carries of class sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dovit_scenes.canvas import Canvas
from dovit_scenes.light import Colour
from dovit_scenes.things import Pole, PoleKind, SceneClass

RED: Colour = (196.0, 30.0, 36.0)
WHITE: Colour = (238.0, 238.0, 234.0)
BLUE: Colour = (24.0, 74.0, 156.0)
GREEN: Colour = (20.0, 96.0, 62.0)
BLACK: Colour = (26.0, 27.0, 30.0)
YELLOW: Colour = (240.0, 196.0, 40.0)


def paint_pole(canvas: Canvas, thing: Pole) -> None:
    """A post and what it carries."""
    depth = thing.s - canvas.camera.s
    number = canvas.claim(SceneClass.POLE, depth)
    grey = np.array([118.0, 122.0, 122.0]) if thing.kind is not PoleKind.TRAFFIC_LIGHT else np.array([64.0, 66.0, 66.0])
    _post(canvas, thing, grey, number)
    if thing.kind is PoleKind.LAMP:
        _lamp(canvas, thing, grey, number)
        return
    sign = canvas.claim(SceneClass.SIGN, depth)
    shapes: dict[PoleKind, Callable[[Canvas, Pole, int], None]] = {
        PoleKind.ROUND_SIGN: _round_sign,
        PoleKind.TRIANGLE_SIGN: _triangle_sign,
        PoleKind.BOARD_SIGN: _board,
        PoleKind.TRAFFIC_LIGHT: _traffic_light,
    }
    shapes[thing.kind](canvas, thing, sign)


def _post(canvas: Canvas, thing: Pole, grey: npt.NDArray[np.float64], number: int) -> None:
    """A tapering post: a lit and a shaded half."""
    half = 0.075 if thing.kind is PoleKind.LAMP else 0.055
    tip = half * 0.7
    x, s, h = thing.x, thing.s, thing.height
    light = canvas.light
    for left, right, side in ((-1.0, 0.0, -1.0), (0.0, 1.0, 1.0)):
        corners = [(x + left * half, 0, s), (x + right * half, 0, s), (x + right * tip, h, s), (x + left * tip, h, s)]
        canvas.fill(corners, grey * light.on((0.7 * side, 0.2, -0.68)), number)
    foot = [(x - 0.11, 0, s), (x + 0.11, 0, s), (x + 0.09, 0.5, s), (x - 0.09, 0.5, s)]
    if thing.kind is PoleKind.LAMP:
        canvas.fill(foot, grey * 0.9 * light.on((0.0, 0.2, -0.98)), number)


def _lamp(canvas: Canvas, thing: Pole, grey: npt.NDArray[np.float64], number: int) -> None:
    """An arm over the road with the lamp at its end."""
    top = (thing.x, thing.height, thing.s)
    end = (thing.x + thing.side * 1.3, thing.height + 0.35, thing.s)
    shade = canvas.light.on((0.0, -0.3, -0.95))
    canvas.limb(top, end, (0.05, 0.04), grey * shade, number)
    tip = (end[0] + thing.side * 0.5, end[1] + 0.03, end[2])
    canvas.limb(end, tip, (0.08, 0.07), grey * 0.85 * shade, number)


def _face(
    canvas: Canvas, thing: Pole, outline: list[tuple[float, float]], colour: Colour, number: int, *, lift: float = 0.0
) -> None:
    """A flat shape (x, y from the sign's middle) in front of the post."""
    # Signs hang with their middle a little below the tip of the post.
    y = thing.height - 0.45
    # Each layer a little nearer to the camera than the one that it covers.
    corners = [(thing.x + a, y + b, thing.s - 0.07 - lift) for a, b in outline]
    glow = np.minimum(canvas.light.on((0.0, 0.25, -0.97)) * 1.15, 1.1)
    canvas.fill(corners, np.asarray(colour) * glow, number)


def _circle(radius: float, *, at: tuple[float, float] = (0.0, 0.0)) -> list[tuple[float, float]]:
    turn = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
    return [(at[0] + radius * float(np.cos(a)), at[1] + radius * float(np.sin(a))) for a in turn]


def _box(left: float, right: float, low: float, high: float) -> list[tuple[float, float]]:
    return [(left, low), (right, low), (right, high), (left, high)]


def _round_sign(canvas: Canvas, thing: Pole, number: int) -> None:
    """A speed limit, no entry, or a blue order."""
    pick = thing.seed % 3
    _face(canvas, thing, _circle(0.36), BLUE if pick == 2 else RED, number)
    if pick == 0:
        _face(canvas, thing, _circle(0.27), WHITE, number, lift=0.01)
        for left in (-0.15, 0.03):
            _face(canvas, thing, _box(left, left + 0.12, -0.13, 0.13), BLACK, number, lift=0.02)
            _face(canvas, thing, _box(left + 0.045, left + 0.075, -0.08, 0.08), WHITE, number, lift=0.03)
    elif pick == 1:
        _face(canvas, thing, _box(-0.25, 0.25, -0.06, 0.06), WHITE, number, lift=0.01)
    else:
        _face(canvas, thing, [(-0.05, -0.2), (0.05, -0.2), (0.05, 0.22), (-0.05, 0.22)], WHITE, number, lift=0.01)
        _face(canvas, thing, [(-0.17, 0.06), (0.17, 0.06), (0.0, 0.27)], WHITE, number, lift=0.01)


def _triangle_sign(canvas: Canvas, thing: Pole, number: int) -> None:
    """A warning; every other one stands on its point (give way)."""
    up = 1.0 if thing.seed % 2 else -1.0
    for size, colour, lift in ((0.46, RED, 0.0), (0.31, WHITE, 0.01)):
        _face(
            canvas,
            thing,
            [(-size, -size * 0.6 * up), (size, -size * 0.6 * up), (0.0, size * up)],
            colour,
            number,
            lift=lift,
        )
    if up > 0:
        _face(canvas, thing, _box(-0.03, 0.03, -0.06, 0.12), BLACK, number, lift=0.02)
        _face(canvas, thing, _circle(0.035, at=(0.0, -0.12)), BLACK, number, lift=0.02)


def _board(canvas: Canvas, thing: Pole, number: int) -> None:
    """A direction board with two lines of writing."""
    colour = (BLUE, GREEN, WHITE)[thing.seed % 3]
    ink = BLACK if colour is WHITE else WHITE
    _face(canvas, thing, _box(-0.7, 0.7, -0.42, 0.42), ink, number)
    _face(canvas, thing, _box(-0.66, 0.66, -0.38, 0.38), colour, number, lift=0.01)
    for row, (width, shift) in enumerate(((0.9, -0.5), (0.7, -0.5))):
        y = 0.1 - 0.32 * row
        at = shift
        while at < shift + width:
            step = 0.05 + 0.03 * ((thing.seed >> row) % 3)
            _face(canvas, thing, _box(at, at + step, y, y + 0.14), ink, number, lift=0.02)
            at += step + 0.045


def _traffic_light(canvas: Canvas, thing: Pole, number: int) -> None:
    """Three lamps in a black box with a white edge; one is lit, the same for the whole clip."""
    _face(canvas, thing, _box(-0.25, 0.25, -0.6, 0.55), WHITE, number)
    _face(canvas, thing, _box(-0.22, 0.22, -0.57, 0.52), BLACK, number, lift=0.01)
    lit = 2 if thing.seed % 3 else 0
    for row, colour in enumerate((RED, YELLOW, (40.0, 220.0, 130.0))):
        tone = 1.25 if row == lit else 0.22
        shown = (colour[0] * tone, colour[1] * tone, colour[2] * tone)
        _face(canvas, thing, _circle(0.12, at=(0.0, 0.33 - 0.35 * row)), shown, number, lift=0.02)
