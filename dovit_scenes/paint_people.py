"""Pedestrians and bicyclists: round limbs between joints that move with the gait."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from dovit_scenes.canvas import Canvas, ColourVector
from dovit_scenes.things import Bicyclist, Pedestrian, SceneClass

WHEEL = 0.34
"""Radius of a bicycle's wheel, metres."""

STRIDE = 1.45
"""Metres that two steps cover."""

Joint = tuple[float, float, float]
"""x right, y up, z forward in metres from the point on the ground below the middle."""


class _Figure:
    """Gathers limbs given in one person's own coordinates, and paints them at once."""

    def __init__(self, canvas: Canvas, foot: tuple[float, float], heading: int, number: int) -> None:
        self.canvas = canvas
        self.foot = np.array([foot[0], 0.0, foot[1]])
        self.turn = np.array([heading, 1.0, heading])
        self.number = number
        sun = float(np.sign(canvas.light.sun[0]))
        self.lit = canvas.light.on((0.55 * sun, 0.45, -0.7))
        self.dim = self.lit * 0.8
        self._ends: list[tuple[Joint, Joint]] = []
        self._radii: list[tuple[float, float]] = []
        self._colours: list[ColourVector] = []

    def limb(
        self, start: Joint, end: Joint, radii: tuple[float, float], colour: ColourVector, *, dim: bool = False
    ) -> None:
        """Add a round bar from `start` to `end`."""
        self._ends.append((start, end))
        self._radii.append(radii)
        self._colours.append(colour * (self.dim if dim else self.lit))

    def paint(self) -> None:
        """Paint all limbs in the order in which they came."""
        ends = np.array(self._ends) * self.turn + self.foot
        radii, colours = np.array(self._radii), np.array(self._colours, np.float32)
        self.canvas.limbs_view(self.canvas.camera.view(ends), radii, colours, self.number)

    def nearer_first(self, joints: tuple[float, float]) -> tuple[int, int]:
        """Of two sides at local z `joints`, indices with the one farther from the camera first."""
        first, second = (z * float(self.turn[2]) for z in joints)
        return (0, 1) if first > second else (1, 0)


def paint_pedestrian(canvas: Canvas, thing: Pedestrian, time_s: float) -> None:
    """Somebody walking: legs and arms swing with the distance covered."""
    depth = thing.s - canvas.camera.s
    number = canvas.claim(SceneClass.PEDESTRIAN, depth)
    figure = _Figure(canvas, (thing.x, thing.s), thing.heading, number)
    rng = np.random.default_rng([thing.seed, 6])
    phase = 2 * math.pi * (time_s * thing.pace / STRIDE + float(rng.random()))
    tall = thing.height / 1.75
    coat, bag = rng.random() < 0.35, rng.random() < 0.4
    top, trousers = np.asarray(thing.top, np.float32), np.asarray(thing.trousers, np.float32)
    skin, hair = np.asarray(thing.skin, np.float32), np.asarray(thing.hair, np.float32)
    # Twice a stride: the body is highest over each standing leg.
    bob = 0.02 * math.cos(2 * phase)
    swings = (math.sin(phase), math.sin(phase + math.pi))
    # Painting order: the farther leg, the farther arm, the body, the nearer arm.
    for index in figure.nearer_first(swings):
        _leg(figure, (-0.09, 0.09)[index] * tall, swings[index], tall, bob, trousers, dim=index == 0)
    order = figure.nearer_first((-swings[0], -swings[1]))
    _arm(figure, (-0.23, 0.23)[order[0]] * tall, -swings[order[0]], tall, bob, top, skin)
    _torso(figure, tall, bob, top, coat=bool(coat))
    _arm(figure, (-0.23, 0.23)[order[1]] * tall, -swings[order[1]], tall, bob, top, skin)
    if bag:
        strap = np.array([62.0, 46.0, 36.0], np.float32)
        figure.limb((0.27 * tall, 0.98 * tall, -0.02), (0.27 * tall, 0.8 * tall, -0.02), (0.09, 0.1), strap)
    _head(figure, (0.0, 1.6 * tall + bob, 0.02), tall, skin, hair)
    figure.paint()


def _leg(figure: _Figure, x: float, swing: float, tall: float, bob: float, colour: ColourVector, *, dim: bool) -> None:
    hip: Joint = (x, 0.9 * tall + bob, 0.0)
    # The leg that comes forward bends at the knee.
    lift = max(0.0, -swing) * 0.09
    knee: Joint = (x, 0.48 * tall + lift * 0.5, (0.2 * swing + lift * 0.9) * tall)
    ankle: Joint = (x, 0.08 * tall + lift, (0.36 * swing - lift * 0.4) * tall)
    toe: Joint = (x * 1.15, 0.04 * tall + lift * 0.7, ankle[2] + 0.16 * tall)
    figure.limb(ankle, toe, (0.045 * tall, 0.035 * tall), np.array([40.0, 36.0, 34.0], np.float32))
    figure.limb(knee, ankle, (0.068 * tall, 0.05 * tall), colour, dim=dim)
    figure.limb(hip, knee, (0.095 * tall, 0.068 * tall), colour, dim=dim)


def _arm(
    figure: _Figure, x: float, swing: float, tall: float, bob: float, sleeve: ColourVector, skin: ColourVector
) -> None:
    shoulder: Joint = (x * 0.86, 1.4 * tall + bob, 0.0)
    elbow: Joint = (x * 1.1, 1.12 * tall + bob, 0.1 * swing * tall)
    hand: Joint = (x * 1.08, 0.88 * tall + bob, (0.24 * swing + 0.05) * tall)
    figure.limb(elbow, hand, (0.045 * tall, 0.036 * tall), sleeve * 0.9)
    figure.limb(hand, (hand[0], hand[1] - 0.04, hand[2]), (0.04 * tall, 0.035 * tall), skin)
    figure.limb(shoulder, elbow, (0.062 * tall, 0.048 * tall), sleeve * 0.9)


def _torso(figure: _Figure, tall: float, bob: float, colour: ColourVector, *, coat: bool) -> None:
    low = 0.62 if coat else 0.88
    for side, tone in ((-1, 0.94), (1, 1.04)):
        x = 0.085 * side * tall
        figure.limb(
            (x, 1.36 * tall + bob, 0.0), (x, low * tall + bob, 0.0), (0.125 * tall, 0.115 * tall), colour * tone
        )
    figure.limb((0.0, 1.38 * tall + bob, 0.0), (0.0, 1.0 * tall + bob, 0.0), (0.12 * tall, 0.1 * tall), colour)


def _head(figure: _Figure, at: Joint, tall: float, skin: ColourVector, hair: ColourVector) -> None:
    x, y, z = at
    figure.limb((x, y - 0.16 * tall, z), (x, y, z), (0.06 * tall, 0.06 * tall), skin * 0.9)
    figure.limb((x, y - 0.035 * tall, z), (x, y + 0.035 * tall, z), (0.088 * tall, 0.096 * tall), skin)
    # Hair covers the back of the head: all of it when walking away, the crown when coming.
    if figure.turn[2] > 0:
        figure.limb((x, y - 0.02 * tall, z), (x, y + 0.045 * tall, z), (0.094 * tall, 0.1 * tall), hair)
    else:
        figure.limb(
            (x - 0.03, y + 0.075 * tall, z), (x + 0.03, y + 0.075 * tall, z), (0.066 * tall, 0.066 * tall), hair
        )


def paint_bicyclist(canvas: Canvas, thing: Bicyclist, time_s: float) -> None:
    """Rider and bicycle, which count as one thing of one class."""
    depth = thing.s - 0.9 - canvas.camera.s
    number = canvas.claim(SceneClass.BICYCLIST, depth)
    figure = _Figure(canvas, (thing.x, thing.s), thing.heading, number)
    phase = 2 * math.pi * time_s * thing.pace / 5.2 + thing.seed % 7
    # The wheel that is farther from the camera comes first, the nearer one over frame and rider.
    near_wheel = -0.52 * thing.heading
    _wheel(figure, -near_wheel)
    _frame(figure, thing)
    _rider(figure, thing, phase)
    _wheel(figure, near_wheel)
    _legs(figure, thing, phase)
    figure.paint()


def _wheel(figure: _Figure, z: float) -> None:
    dark = np.array([30.0, 30.0, 32.0], np.float32)
    turn = np.linspace(0.0, 2 * math.pi, 15)
    for a, b in pairwise(turn.tolist()):
        start = (0.0, WHEEL * (1 + math.sin(a)), z + WHEEL * math.cos(a))
        end = (0.0, WHEEL * (1 + math.sin(b)), z + WHEEL * math.cos(b))
        figure.limb(start, end, (0.022, 0.022), dark)


def _frame(figure: _Figure, thing: Bicyclist) -> None:
    colour = np.asarray(thing.frame, np.float32)
    dark = np.array([38.0, 38.0, 40.0], np.float32)
    rear, crank, seat, bars = (0.0, 0.34, -0.52), (0.0, 0.3, -0.06), (0.0, 0.88, -0.2), (0.0, 0.95, 0.36)
    for start, end in (
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, bars),
        (seat, bars),
        (bars, (0.0, 0.34, 0.52)),
    ):
        figure.limb(start, end, (0.022, 0.022), colour)
    figure.limb((-0.26, 1.0, 0.34), (0.26, 1.0, 0.34), (0.02, 0.02), dark)
    figure.limb((0.0, 0.93, -0.3), (0.0, 0.93, -0.1), (0.07, 0.04), dark)


def _rider(figure: _Figure, thing: Bicyclist, phase: float) -> None:
    top, skin = np.asarray(thing.top, np.float32), np.asarray(thing.skin, np.float32)
    sway = 0.012 * math.sin(phase)
    for side in (-1, 1):
        shoulder, hand = (0.18 * side, 1.4, 0.06), (0.24 * side, 1.04, 0.34)
        elbow = (0.27 * side, 1.18, 0.16)
        figure.limb(elbow, hand, (0.045, 0.04), top * 0.85)
        figure.limb(shoulder, elbow, (0.06, 0.048), top * 0.9)
        figure.limb(hand, (hand[0], hand[1], hand[2] + 0.05), (0.042, 0.04), skin)
    for side, tone in ((-1, 0.94), (1, 1.04)):
        hips, shoulders = (0.08 * side, 0.98, -0.2), (0.1 * side + sway, 1.38, 0.04)
        figure.limb(hips, shoulders, (0.125, 0.125), top * tone)
    figure.limb((sway, 1.42, 0.06), (sway, 1.6, 0.1), (0.06, 0.06), skin * 0.9)
    figure.limb((sway, 1.58, 0.11), (sway, 1.65, 0.11), (0.088, 0.092), skin)
    figure.limb((sway, 1.68, 0.06), (sway, 1.69, 0.16), (0.102, 0.098), np.asarray(thing.helmet, np.float32))


def _legs(figure: _Figure, thing: Bicyclist, phase: float) -> None:
    colour = np.asarray(thing.trousers, np.float32)
    shoe = np.array([40.0, 38.0, 38.0], np.float32)
    for side, turn in ((-1, phase), (1, phase + math.pi)):
        pedal = (0.1 * side, 0.32 + 0.17 * math.sin(turn), -0.06 + 0.17 * math.cos(turn))
        hip = (0.1 * side, 0.94, -0.18)
        knee = (0.12 * side, (hip[1] + pedal[1]) / 2 + 0.06, (hip[2] + pedal[2]) / 2 + 0.22)
        figure.limb(pedal, (pedal[0], pedal[1], pedal[2] + 0.14), (0.042, 0.034), shoe)
        figure.limb(knee, pedal, (0.065, 0.048), colour, dim=side < 0)
        figure.limb(hip, knee, (0.1, 0.068), colour, dim=side < 0)
