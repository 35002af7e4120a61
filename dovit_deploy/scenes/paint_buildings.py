"""Houses: a street wall with windows, doors or a shop, an end wall, a roof and a chimney."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovit_deploy.scenes.canvas import Canvas
from dovit_deploy.scenes.classes import SceneClass
from dovit_deploy.scenes.facades import end_wall_texture, facade_texture
from dovit_deploy.scenes.surfaces import Surface, paint_surface
from dovit_deploy.scenes.texture import Texture
from dovit_deploy.scenes.things import Building

OVERHANG = 0.3
"""Metres that a roof reaches over its wall."""


def paint_building(canvas: Canvas, thing: Building) -> None:
    """Paint a house: the roof first, then the walls in front of it."""
    number = canvas.claim(SceneClass.BUILDING, thing.s - canvas.camera.s)
    facade, end_wall = _textures(thing)
    light = canvas.light
    if thing.roof > 0:
        _chimney(canvas, thing, number)
        _roof(canvas, thing, number)
    if thing.s - canvas.camera.s > 0:
        shade = light.on((0.0, 0.0, -1.0))
        base, out = (thing.x, 0.0, thing.s), (float(thing.side) * thing.depth, 0.0, 0.0)
        paint_surface(canvas, Surface(base, out, (0.0, thing.height, 0.0)), end_wall, shade, number)
    shade = light.on((-float(thing.side), 0.0, 0.0))
    base, along = (thing.x, 0.0, thing.s), (0.0, 0.0, thing.length)
    paint_surface(canvas, Surface(base, along, (0.0, thing.height, 0.0)), facade, shade, number)
    _cornice(canvas, thing, number)


@lru_cache(maxsize=96)
def _textures(thing: Building) -> tuple[Texture, Texture]:
    return facade_texture(thing), end_wall_texture(thing)


def _roof(canvas: Canvas, thing: Building, number: int) -> None:
    """The slope towards the street and the gable at the near end."""
    ridge = (thing.x + thing.side * thing.depth / 2, thing.height + thing.roof)
    eaves = (thing.x - thing.side * OVERHANG, thing.height - 0.05)
    ends = (thing.s, thing.s + thing.length)
    slope = [(*eaves, ends[0]), (*eaves, ends[1]), (*ridge, ends[1]), (*ridge, ends[0])]
    normal = np.array([-thing.side * thing.roof, thing.depth / 2, 0.0])
    shade = canvas.light.on(normal / np.linalg.norm(normal))
    canvas.fill(slope, np.asarray(thing.tiles) * shade, number)
    _courses(canvas, thing, number, eaves, ridge, np.asarray(thing.tiles) * shade * 0.86)
    if thing.s > canvas.camera.s:
        back = (thing.x + thing.side * thing.depth, thing.height)
        gable = [(thing.x, thing.height, thing.s), (*back, thing.s), (*ridge, thing.s)]
        canvas.fill(gable, np.asarray(thing.wall) * canvas.light.on((0.0, 0.0, -1.0)) * 0.97, number)


def _courses(
    canvas: Canvas,
    thing: Building,
    number: int,
    eaves: tuple[float, float],
    ridge: tuple[float, float],
    colour: npt.ArrayLike,
) -> None:
    """Darker bands across the slope, as rows of tiles."""
    ends = (thing.s, thing.s + thing.length)
    low, high = np.array(eaves), np.array(ridge)
    for share in (0.18, 0.4, 0.62, 0.84):
        under, over = low + (high - low) * share, low + (high - low) * (share + 0.05)
        band = [(*under, ends[0]), (*under, ends[1]), (*over, ends[1]), (*over, ends[0])]
        canvas.fill(band, colour, number)


def _cornice(canvas: Canvas, thing: Building, number: int) -> None:
    """A gutter, or the edge of a flat roof: a light band along the top of the street wall."""
    high = 0.14 if thing.roof > 0 else 0.34
    x = thing.x - thing.side * (OVERHANG if thing.roof > 0 else 0.08)
    top = thing.height + (0.03 if thing.roof > 0 else 0.22)
    ends = (thing.s, thing.s + thing.length)
    band = [(x, top - high, ends[0]), (x, top - high, ends[1]), (x, top, ends[1]), (x, top, ends[0])]
    tone = (92.0, 90.0, 90.0) if thing.roof > 0 else np.asarray(thing.wall) * 0.5 + 96.0
    canvas.fill(band, np.asarray(tone) * canvas.light.on((-float(thing.side), 0.0, 0.0)), number)
    if thing.s > canvas.camera.s:
        back = thing.x + thing.side * thing.depth
        end = [(x, top - high, ends[0]), (back, top - high, ends[0]), (back, top, ends[0]), (x, top, ends[0])]
        if thing.roof == 0:
            canvas.fill(end, np.asarray(tone) * canvas.light.on((0.0, 0.0, -1.0)), number)


def _chimney(canvas: Canvas, thing: Building, number: int) -> None:
    """A stack on the ridge at the far end."""
    x = thing.x + thing.side * thing.depth / 2
    s = thing.s + 0.8 * thing.length
    low, high = thing.height + thing.roof - 0.9, thing.height + thing.roof + 1.1
    wall = np.asarray(thing.wall) * 0.8
    front = [(x - 0.5, low, s), (x + 0.5, low, s), (x + 0.5, high, s), (x - 0.5, high, s)]
    inner = x - thing.side * 0.5
    flank = [(inner, low, s), (inner, low, s + 0.8), (inner, high, s + 0.8), (inner, high, s)]
    canvas.fill(front, wall * canvas.light.on((0.0, 0.0, -1.0)), number)
    canvas.fill(flank, wall * canvas.light.on((-float(thing.side), 0.0, 0.0)), number)
