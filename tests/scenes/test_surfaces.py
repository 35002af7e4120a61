"""Textures at every scale, and how surfaces lay them on the canvas."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_scenes.camera import Bend, Camera
from dovit_scenes.canvas import Canvas
from dovit_scenes.surfaces import Surface, paint_surface
from dovit_scenes.texture import TILE, Texture, noise_tile
from dovit_scenes.things import SceneClass
from dovit_scenes.world import world_from_seed


def canvas():
    camera = Camera(320, 180, 0.0, 0.0, 1.4, 0.0, Bend(0.0, 70.0, 0.0), 1)
    return Canvas(camera, world_from_seed(0).light)


def plain(opacity=255, colour=(200, 40, 40)):
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = opacity
    return Texture(pixels)


def test_reductions_keep_the_mean():
    rng = np.random.default_rng(0)
    texture = Texture(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8))
    full, small = texture.at_scale(64, 64), texture.at_scale(8, 16)
    assert full.shape == (64, 64, 4)
    assert small.shape[0] < 64 and small.shape[1] < 64
    assert np.allclose(full.mean(axis=(0, 1)), small.mean(axis=(0, 1)), atol=0.5)


def test_noise_repeats_without_a_seam():
    tile = noise_tile(3, roughness=1.5)
    inner = np.abs(np.diff(tile, axis=1)).mean()
    seam = np.abs(tile[:, 0] - tile[:, TILE - 1]).mean()
    assert seam < 2 * inner
    assert abs(float(tile.mean())) < 1e-3


def test_a_wall_that_runs_past_the_camera_covers_the_side_of_the_image():
    sheet = canvas()
    wall = Surface((3.0, 0.0, -20.0), (0.0, 0.0, 60.0), (0.0, 20.0, 0.0))
    paint_surface(sheet, wall, plain(), (1, 1, 1), int(SceneClass.BUILDING))
    numbers = sheet.pixels[..., 3]
    # Its far end is 40 m ahead; from there to the right edge every column above the ground is wall.
    edge = int(160 + 3.0 / 40.0 * sheet.camera.focal) + 3
    assert (numbers[: int(sheet.camera.horizon), edge + 40 :] == SceneClass.BUILDING).all()
    assert not (numbers[:, : edge - 8] == SceneClass.BUILDING).any()


def test_a_surface_behind_the_camera_is_not_painted():
    sheet = canvas()
    before = sheet.pixels.copy()
    behind = Surface((3.0, 0.0, -30.0), (0.0, 0.0, 20.0), (0.0, 5.0, 0.0))
    paint_surface(sheet, behind, plain(), (1, 1, 1), int(SceneClass.BUILDING))
    assert np.array_equal(before, sheet.pixels)


@pytest.mark.parametrize(("see_through", "owned"), [(True, True), (False, False)])
def test_the_gaps_of_a_fence_belong_to_it_and_those_of_a_tree_do_not(see_through, owned):
    sheet = canvas()
    sheet.pixels[..., :3] = 100
    board = Surface((-2.0, 0.0, 8.0), (4.0, 0.0, 0.0), (0.0, 2.0, 0.0))
    paint_surface(sheet, board, plain(opacity=0), (1, 1, 1), int(SceneClass.FENCE), see_through=see_through)
    assert (sheet.pixels[..., 3] == SceneClass.FENCE).any() == owned
    assert (sheet.pixels[..., :3] == 100).all()


def test_far_surfaces_fade_into_the_haze():
    shown = []
    for depth in (8.0, 150.0):
        sheet = canvas()
        board = Surface((-depth / 8, 0.0, depth), (depth / 4, 0.0, 0.0), (0.0, depth / 4, 0.0))
        paint_surface(sheet, board, plain(), (1, 1, 1), int(SceneClass.BUILDING))
        shown.append(sheet.pixels[sheet.pixels[..., 3] == SceneClass.BUILDING][:, :3].mean(axis=0))
    haze = np.array(world_from_seed(0).light.haze)
    assert np.abs(shown[1] - haze).sum() < 0.7 * np.abs(shown[0] - haze).sum()
