"""Sky, clouds and the far skyline: everything that is too far away to come nearer."""

from __future__ import annotations

import numpy as np

from dovit_deploy import packages
from dovit_deploy.scenes.canvas import Canvas
from dovit_deploy.scenes.classes import SceneClass
from dovit_deploy.scenes.noise import TILE, Field, noise_tile

CLOUD_DRIFT = 0.6
"""Noise pixels per second."""

SKYLINE_STEP = 4
"""Sheet pixels between the corners of the far tree line."""


def paint_sky(canvas: Canvas, seed: int, time_s: float) -> None:
    """Fill the sheet above (and a little below) the horizon; class sky, with a line of far trees."""
    rows = int(min(canvas.camera.height, np.ceil(canvas.camera.horizon) + 2))
    if rows <= 0:
        return
    sky = _gradient(canvas, rows)
    cover = _clouds(canvas, rows, seed, time_s)[..., None]
    white = np.float32(0.35) * np.asarray(canvas.light.haze, np.float32) + np.float32(0.65 * 250.0)
    sky = sky + (white - sky) * cover
    canvas.pixels[:rows, :, :3] = np.clip(sky, 0, 255).astype(np.uint8)
    canvas.pixels[:rows, :, 3] = SceneClass.SKY
    _skyline(canvas, seed)


def _gradient(canvas: Canvas, rows: int) -> Field:
    """(rows, 1, 3): from the horizon's haze to the zenith's blue."""
    elevation = (canvas.camera.horizon - np.arange(rows, dtype=np.float32) - 0.5) / canvas.camera.focal
    height = np.clip(elevation / 0.55, 0.0, 1.0)[:, None, None] ** 0.7
    low, high = (np.asarray(c, np.float32) for c in (canvas.light.haze, canvas.light.zenith))
    out: Field = low + (high - low) * height
    return out.astype(np.float32)


def _clouds(canvas: Canvas, rows: int, seed: int, time_s: float) -> Field:
    """(rows, width) share of cloud: noise on a flat ceiling, seen in perspective."""
    cv2 = packages.opencv()
    camera = canvas.camera
    # Clouds are soft, so a quarter of the sheet's resolution is enough.
    height, width = max(2, rows // 4), max(2, camera.width // 4)
    elevation = (camera.horizon - (np.arange(height, dtype=np.float32) + 0.5) * rows / height) / camera.focal
    distance = (1.0 / (np.maximum(elevation, 0.0) + 0.07))[:, None]
    angle = ((np.arange(width, dtype=np.float32) + 0.5) * camera.width / width - camera.width / 2) / camera.focal
    # The camera turns with the street; the sky does not.
    bearing = camera.side * angle + camera.heading
    across = np.mod(bearing[None, :] * distance * 34.0, TILE).astype(np.float32)
    away = np.mod(distance * 34.0 + CLOUD_DRIFT * time_s, TILE)
    away = np.broadcast_to(away, across.shape).astype(np.float32)
    tile = noise_tile(seed, roughness=1.7)
    field = cv2.remap(tile, across, np.ascontiguousarray(away), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    cover = np.clip((field + 2.6 * canvas.light.cloudiness - 1.1) / 1.9, 0.0, 1.0)
    cover *= np.clip((np.maximum(elevation, 0.0) + 0.02) / 0.14, 0.0, 1.0)[:, None]
    out: Field = cv2.resize(cover * 0.9, (camera.width, rows), interpolation=cv2.INTER_LINEAR)
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
