"""Trees, hedges with lawns, and fences: painted from textures that are drawn once each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.canvas import Canvas
from dovit_scenes.light import Colour
from dovit_scenes.surfaces import Surface, paint_surface
from dovit_scenes.texture import Sheet, Texture, noise_patch
from dovit_scenes.things import Fence, FenceKind, Hedge, SceneClass, Tree

TREE_ROWS, TREE_COLUMNS = 416, 264
"""Size of a tree's image, pixels."""

BLOBS = 150

SHAPES = 5
"""Tree shapes that are drawn; trees share them, stretched and toned each in its own way."""

SCALE = 40
"""Pixels per metre."""


def paint_tree(canvas: Canvas, thing: Tree) -> None:
    """A tree, flat and turned to the camera."""
    number = canvas.claim(SceneClass.TREE, thing.s - canvas.camera.s)
    # A mirrored street has its textures mirrored too, so the sun's flank needs no turning.
    flank = 0.6 if canvas.light.sun[0] > 0 else -0.6
    texture = tree_texture(thing.seed % SHAPES, thing.leaves, sun_right=flank)
    shade = canvas.light.on((0.5 * float(np.sign(canvas.light.sun[0])), 0.6, -0.62)) * thing.tone
    base = (thing.x - thing.spread / 2, 0.0, thing.s)
    surface = Surface(base, (thing.spread, 0.0, 0.0), (0.0, thing.height, 0.0))
    paint_surface(canvas, surface, texture, shade, number)


@lru_cache(maxsize=64)
def tree_texture(shape: int, leaves: Colour, *, sun_right: float) -> Texture:
    """Tree number `shape`, crown and trunk; `sun_right` -1..1 says how much the right flank is lit."""
    cv2 = packages.opencv()
    rng = np.random.default_rng([shape, 3])
    rows, columns = TREE_ROWS, TREE_COLUMNS
    sheet = np.zeros((rows, columns, 4), np.float32)
    _trunk(rng, sheet)
    crown = np.zeros((rows, columns, 4), np.float32)
    _crown(rng, crown, np.asarray(leaves), sun_right)
    # Pixels by which leaves are displaced, so that blobs lose their round outlines.
    wobble = 5.0
    across = noise_patch(rng, rows, columns, roughness=0.8) * wobble + np.arange(columns, dtype=np.float32)
    down = noise_patch(rng, rows, columns, roughness=0.8) * wobble + np.arange(rows, dtype=np.float32)[:, None]
    crown = cv2.remap(crown, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    grain = noise_patch(rng, rows, columns, roughness=0.35)
    crown[..., :3] *= (1.0 + 0.15 * grain)[..., None]
    # Holes where leaves are thin let sky and branches through.
    crown[..., 3] *= noise_patch(rng, rows, columns, roughness=1.2) > -1.75
    cover = crown[..., 3:] / 255.0
    sheet = crown * cover + sheet * (1.0 - cover)
    sheet[..., 3:] = np.maximum(sheet[..., 3:], crown[..., 3:])
    return Texture(np.clip(sheet, 0, 255).astype(np.uint8))


def _trunk(rng: np.random.Generator, sheet: Sheet) -> None:
    """A tapering stem with a few branches; brown-grey, lighter on one flank."""
    cv2 = packages.opencv()
    rows, columns = sheet.shape[:2]
    middle, fork = columns / 2, rows * 0.52
    bark = np.array([86.0, 76.0, 66.0]) * float(rng.uniform(0.8, 1.2))
    half = max(3.0, 0.022 * rows)
    stem = np.array(
        [(middle - half, rows), (middle + half, rows), (middle + half * 0.6, fork), (middle - half * 0.6, fork)]
    )
    cv2.fillPoly(sheet, [np.rint(stem).astype(np.int32)], (*bark, 255.0))
    lit = stem.copy()
    lit[[0, 3], 0] = middle + half * 0.2
    cv2.fillPoly(sheet, [np.rint(lit).astype(np.int32)], (*(bark * 1.25), 255.0))
    for _ in range(7):
        start = (round(middle), round(fork + rows * float(rng.uniform(-0.02, 0.1))))
        angle = float(rng.uniform(-1.0, 1.0))
        reach = rows * float(rng.uniform(0.2, 0.34))
        end = (round(middle + reach * np.sin(angle)), round(start[1] - reach * np.cos(angle)))
        cv2.line(sheet, start, end, (*(bark * 0.85), 255.0), max(2, round(half * 0.5)))


def _crown(rng: np.random.Generator, sheet: Sheet, leaves: npt.NDArray[np.float64], sun_right: float) -> None:
    """Blobs of leaves, dark and low ones first, bright ones towards the sun last."""
    cv2 = packages.opencv()
    rows, columns = sheet.shape[:2]
    centre = np.array([columns / 2, rows * 0.37])
    radii = np.array([columns * 0.4, rows * 0.31])
    angle = rng.uniform(0, 2 * np.pi, BLOBS)
    distance = np.sqrt(rng.uniform(0, 1, BLOBS))
    unit = np.stack([np.cos(angle) * distance, np.sin(angle) * distance], axis=-1)
    # Brightness of a ball lit from above and from the sun's side, seen from the front.
    facing = 0.55 * -unit[:, 1] + 0.45 * sun_right * unit[:, 0] + rng.normal(0, 0.22, BLOBS)
    for index in np.argsort(facing):
        x, y = centre + unit[index] * radii
        radius = columns * float(rng.uniform(0.055, 0.11))
        tint = leaves * (0.86 + 0.46 * float(facing[index])) + np.array([8.0, 6.0, 0.0]) * float(facing[index])
        at = (round(float(x)), round(float(y)))
        cv2.circle(sheet, at, round(radius), (*np.clip(tint, 8, 235), 255.0), -1)


def paint_hedge(canvas: Canvas, thing: Hedge) -> None:
    """The lawn behind a hedge, then its face; both count as vegetation."""
    light = canvas.light
    number = canvas.claim(SceneClass.TREE, thing.s - canvas.camera.s)
    back = thing.x + thing.side * thing.depth
    ends = (thing.s, thing.s + thing.length)
    lawn = [(thing.x, 0.02, ends[0]), (thing.x, 0.02, ends[1]), (back, 0.02, ends[1]), (back, 0.02, ends[0])]
    # The lawn has the number of its class, not of the hedge: it is not counted as a thing.
    canvas.fill(lawn, np.array([104.0, 122.0, 66.0]) * light.on((0.0, 1.0, 0.0)), int(SceneClass.TREE))
    if thing.s > canvas.camera.s:
        end = thing.x + thing.side * 0.6
        # A little lower than the face, whose top is ragged.
        h = thing.height * 0.97
        face = [(thing.x, 0, thing.s), (end, 0, thing.s), (end, h, thing.s), (thing.x, h, thing.s)]
        canvas.fill(face, np.asarray(thing.leaves) * 0.8 * light.on((0.0, 0.0, -1.0)), number)
    shade = light.on((-0.8 * thing.side, 0.6, 0.0))
    along, up = (0.0, 0.0, thing.length), (0.0, thing.height, 0.0)
    paint_surface(canvas, Surface((thing.x, 0.0, thing.s), along, up), hedge_texture(thing), shade, number)


@lru_cache(maxsize=64)
def hedge_texture(hedge: Hedge) -> Texture:
    """The face of a clipped hedge: leaves, darker at the foot, ragged along the top."""
    rng = np.random.default_rng([hedge.seed, 4])
    scale = 30
    rows, columns = max(12, round(hedge.height * scale)), round(hedge.length * scale)
    grain = noise_patch(rng, rows, columns, roughness=0.45)
    clumps = noise_patch(rng, rows, columns, roughness=1.1)
    up = np.linspace(1.0, 0.0, rows, dtype=np.float32)[:, None]
    tone = (0.62 + 0.46 * up) * (1.0 + 0.2 * grain + 0.12 * clumps)
    colour = tone[..., None] * np.asarray(hedge.leaves, np.float32)
    edge = noise_patch(rng, 1, columns, roughness=0.9)[0] * 2.2 + 4.0
    inside = np.arange(rows)[:, None] >= edge[None, :]
    sheet = np.concatenate([colour, 255.0 * inside[..., None]], axis=-1)
    return Texture(np.clip(sheet, 0, 255).astype(np.uint8))


def paint_fence(canvas: Canvas, thing: Fence) -> None:
    """A fence; the gaps between its bars count as fence too, as people label them."""
    number = canvas.claim(SceneClass.FENCE, thing.s - canvas.camera.s)
    shade = canvas.light.on((-float(np.sign(thing.x)), 0.0, 0.0))
    along, up = (0.0, 0.0, thing.length), (0.0, thing.height, 0.0)
    base = (thing.x, 0.0, thing.s)
    paint_surface(canvas, Surface(base, along, up), fence_texture(thing), shade, number, see_through=True)


@lru_cache(maxsize=64)
def fence_texture(fence: Fence) -> Texture:
    """The face of a fence, near end on the left."""
    rng = np.random.default_rng([fence.seed, 5])
    rows, columns = round(fence.height * SCALE), round(fence.length * SCALE)
    sheet = {FenceKind.BOARDS: _boards, FenceKind.RAILINGS: _railings, FenceKind.WALL: _wall}[fence.kind](
        rng, fence, rows, columns
    )
    return Texture(np.clip(sheet, 0, 255).astype(np.uint8))


def _boards(rng: np.random.Generator, fence: Fence, rows: int, columns: int) -> Sheet:
    """Upright boards, each a little different, with dark joints and a rail on top."""
    board = np.arange(columns) // 6
    tone = rng.normal(1.0, 0.08, columns // 6 + 1)[board] * np.where(np.arange(columns) % 6 == 5, 0.6, 1.0)
    grain = noise_patch(rng, rows, columns, roughness=0.8)
    sheet = _opaque(tone[None, :] * (1.0 + 0.06 * grain), fence)
    sheet[:3, :, :3] *= 1.18
    sheet[-5:, :, :3] *= 0.75
    return sheet


def _railings(rng: np.random.Generator, fence: Fence, rows: int, columns: int) -> Sheet:
    """Thin bars between two rails, posts every two metres; one sees through."""
    sheet = _opaque(np.ones((rows, columns)) + 0.1 * noise_patch(rng, rows, columns, roughness=0.4), fence)
    at = np.arange(columns)
    bars = np.broadcast_to((at % 5 < 1) | (at % 80 < 4), (rows, columns)).copy()
    bars[2:5] = True
    bars[-8:-5] = True
    sheet[..., 3] = np.where(bars, 255.0, 0.0)
    return sheet


def _wall(rng: np.random.Generator, fence: Fence, rows: int, columns: int) -> Sheet:
    """Bricks under a lighter coping."""
    course = np.arange(rows)[:, None] // 4
    brick = (np.arange(columns)[None, :] + 5 * (course % 2)) // 10
    own = rng.normal(1.0, 0.08, (rows // 4 + 1, columns // 10 + 2))
    tone = own[course, brick] * (1.0 + 0.05 * noise_patch(rng, rows, columns, roughness=1.0))
    sheet = _opaque(tone, fence)
    sheet[:5, :, :3] = 0.4 * sheet[:5, :, :3] + 112.0
    sheet[5:7, :, :3] *= 0.7
    return sheet


def _opaque(tone: npt.NDArray[np.floating], fence: Fence) -> Sheet:
    colour = tone[..., None] * np.asarray(fence.paint)
    return np.concatenate([colour, np.full((*tone.shape, 1), 255.0)], axis=-1).astype(np.float32)
