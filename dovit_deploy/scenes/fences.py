"""Pictures of fences: boards, iron railings, low walls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy.scenes.noise import noise_patch
from dovit_deploy.scenes.texture import Texture
from dovit_deploy.scenes.things import Fence, FenceKind

SCALE = 40
"""Pixels per metre."""

Sheet = npt.NDArray[np.float32]
"""(h, w, 4) float32 RGB and opacity, 0..255."""


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
