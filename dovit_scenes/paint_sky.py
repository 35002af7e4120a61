"""Sky, clouds and the far skyline: everything that is too far away to come nearer."""

from __future__ import annotations

import numpy as np

from dovit_scenes import packages
from dovit_scenes.canvas import Canvas
from dovit_scenes.texture import TILE, Field, noise_tile
from dovit_scenes.things import SceneClass

CLOUD_DRIFT = 0.6
"""Noise pixels per second."""

COARSE = 3
"""Sheet pixels per pixel of the sky as it is computed: nothing in it is sharp."""

SKYLINE_STEP = 4
"""Sheet pixels between the corners of the far tree line."""


def paint_sky(canvas: Canvas, seed: int, time_s: float) -> None:
    """Fill the sheet above (and a little below) the horizon; class sky, with a line of far trees."""
    # Two rows below the horizon, which the ground's first row may leave open.
    rows = int(min(canvas.camera.height, np.ceil(canvas.camera.horizon) + 2))
    if rows <= 0:
        return
    cv2 = packages.opencv()
    elevation = _elevations(canvas, rows)
    cover = _clouds(canvas, elevation, seed, time_s)[..., None]
    # Clouds are lit from above: their thick parts are greyer than their edges.
    haze = np.asarray(canvas.light.haze, np.float32)
    thick = 0.5 * haze + np.array([100.0, 104.0, 111.0], np.float32)
    cloud = 252.0 - (252.0 - thick) * np.clip(1.6 * cover - 0.5, 0.0, 1.0)
    sky = _gradient(canvas, elevation)
    sky = sky + (cloud - sky) * cover
    size = (canvas.camera.width, rows)
    smooth = cv2.resize(sky, size, interpolation=cv2.INTER_LINEAR)
    canvas.pixels[:rows, :, :3] = np.clip(smooth, 0, 255).astype(np.uint8)
    canvas.pixels[:rows, :, 3] = SceneClass.SKY
    _skyline(canvas, seed)


def _elevations(canvas: Canvas, rows: int) -> Field:
    """Slopes above the horizon of every `COARSE`-th of `rows` rows."""
    count = max(2, rows // COARSE)
    centres = (np.arange(count, dtype=np.float32) + 0.5) * rows / count
    return np.asarray((canvas.camera.horizon - centres) / canvas.camera.focal, np.float32)


def _gradient(canvas: Canvas, elevation: Field) -> Field:
    """(rows, 1, 3): from the horizon's haze to the zenith's blue."""
    height = np.clip(elevation / 0.5, 0.0, 1.0)[:, None, None] ** 0.75
    low, high = (np.asarray(c, np.float32) for c in (canvas.light.haze, canvas.light.zenith))
    return np.asarray(low + (high - low) * height, np.float32)


def _clouds(canvas: Canvas, elevation: Field, seed: int, time_s: float) -> Field:
    """(rows, columns) share of cloud: noise on a flat ceiling, seen in perspective."""
    cv2 = packages.opencv()
    camera = canvas.camera
    width = max(2, camera.width // COARSE)
    distance = (1.0 / (np.maximum(elevation, 0.0) + 0.09))[:, None]
    angle = ((np.arange(width, dtype=np.float32) + 0.5) * camera.width / width - camera.width / 2) / camera.focal
    # The camera turns with the street; the sky does not.
    bearing = camera.side * angle + camera.heading
    across = np.mod(bearing[None, :] * distance * 22.0, TILE).astype(np.float32)
    away = np.mod(distance * 22.0 + CLOUD_DRIFT * time_s, TILE)
    away = np.ascontiguousarray(np.broadcast_to(away, across.shape), np.float32)
    # Perspective of a flat ceiling: towards the horizon clouds get small and crowd together.
    tile = noise_tile(seed, roughness=1.6)
    field = cv2.remap(tile, across, away, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    cover = np.clip((field + 2.4 * canvas.light.cloudiness - 0.75) / 1.5, 0.0, 1.0)
    cover *= np.clip((np.maximum(elevation, 0.0) + 0.02) / 0.16, 0.0, 1.0)[:, None]
    out: Field = (0.94 * cover).astype(np.float32)
    return out


def _skyline(canvas: Canvas, seed: int) -> None:
    """Trees and roofs some 400 m away; they only turn with the camera."""
    camera = canvas.camera
    columns = np.arange(-SKYLINE_STEP, camera.width + 2 * SKYLINE_STEP, SKYLINE_STEP, dtype=np.float32)
    bearing = camera.side * (columns - camera.width / 2) / camera.focal + camera.heading
    for row, (kind, low, high, tone) in enumerate(
        ((SceneClass.BUILDING, 0.008, 0.014, (150, 146, 146)), (SceneClass.TREE, 0.008, 0.013, (104, 118, 100)))
    ):
        profile = noise_tile(seed, roughness=1.0)[31 + 100 * row]
        blocky = np.floor(bearing * 60) * 5 if kind is SceneClass.BUILDING else bearing * 260
        heights = low + (high - low) * np.interp(blocky, np.arange(TILE), profile, period=TILE)
        top = camera.horizon - np.maximum(heights, 0.001) * camera.focal
        ends = [(columns[-1], camera.horizon + 2), (columns[0], camera.horizon + 2)]
        outline = np.concatenate([np.stack([columns, top], axis=-1), ends]).astype(np.float32)
        canvas.fill_pixels([outline], canvas.hazed(canvas.light.on((0.0, 0.6, -0.8)) * tone, 260.0), kind)
