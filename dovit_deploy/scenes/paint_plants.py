"""Trees, hedges with lawns, and fences."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dovit_deploy.scenes.canvas import Canvas
from dovit_deploy.scenes.classes import SceneClass
from dovit_deploy.scenes.fences import fence_texture
from dovit_deploy.scenes.foliage import hedge_texture, tree_texture
from dovit_deploy.scenes.light import Colour
from dovit_deploy.scenes.surfaces import Surface, paint_surface
from dovit_deploy.scenes.texture import Texture
from dovit_deploy.scenes.things import Fence, Hedge, Tree

SHAPES = 5
"""Tree shapes that are drawn; trees share them, stretched and toned each in its own way."""


def paint_tree(canvas: Canvas, thing: Tree) -> None:
    """A tree, flat and turned to the camera."""
    number = canvas.claim(SceneClass.TREE, thing.s - canvas.camera.s)
    # A mirrored street has its textures mirrored too, so the sun's flank needs no turning.
    flank = 0.6 if canvas.light.sun[0] > 0 else -0.6
    texture = _tree(thing.seed % SHAPES, thing.leaves, flank)
    shade = canvas.light.on((0.5 * float(np.sign(canvas.light.sun[0])), 0.6, -0.62)) * thing.tone
    base = (thing.x - thing.spread / 2, 0.0, thing.s)
    surface = Surface(base, (thing.spread, 0.0, 0.0), (0.0, thing.height, 0.0))
    paint_surface(canvas, surface, texture, shade, number)


@lru_cache(maxsize=64)
def _tree(shape: int, leaves: Colour, sun_right: float) -> Texture:
    return tree_texture(shape, leaves, sun_right=sun_right)


def paint_hedge(canvas: Canvas, thing: Hedge) -> None:
    """The lawn behind a hedge, then its face; both count as vegetation."""
    light = canvas.light
    number = canvas.claim(SceneClass.TREE, thing.s - canvas.camera.s)
    back = thing.x + thing.side * thing.depth
    ends = (thing.s, thing.s + thing.length)
    lawn = [(thing.x, 0.02, ends[0]), (thing.x, 0.02, ends[1]), (back, 0.02, ends[1]), (back, 0.02, ends[0])]
    canvas.fill(lawn, np.array([104.0, 122.0, 66.0]) * light.on((0.0, 1.0, 0.0)), int(SceneClass.TREE))
    if thing.s > canvas.camera.s:
        end = thing.x + thing.side * 0.6
        h = thing.height * 0.97
        face = [(thing.x, 0, thing.s), (end, 0, thing.s), (end, h, thing.s), (thing.x, h, thing.s)]
        canvas.fill(face, np.asarray(thing.leaves) * 0.8 * light.on((0.0, 0.0, -1.0)), number)
    shade = light.on((-0.8 * thing.side, 0.6, 0.0))
    along, up = (0.0, 0.0, thing.length), (0.0, thing.height, 0.0)
    paint_surface(canvas, Surface((thing.x, 0.0, thing.s), along, up), _hedge(thing), shade, number)


@lru_cache(maxsize=64)
def _hedge(thing: Hedge) -> Texture:
    return hedge_texture(thing)


def paint_fence(canvas: Canvas, thing: Fence) -> None:
    """A fence; the gaps between its bars count as fence too, as people label them."""
    number = canvas.claim(SceneClass.FENCE, thing.s - canvas.camera.s)
    shade = canvas.light.on((-float(np.sign(thing.x)), 0.0, 0.0))
    along, up = (0.0, 0.0, thing.length), (0.0, thing.height, 0.0)
    base = (thing.x, 0.0, thing.s)
    paint_surface(canvas, Surface(base, along, up), _fence(thing), shade, number, see_through=True)


@lru_cache(maxsize=64)
def _fence(thing: Fence) -> Texture:
    return fence_texture(thing)
