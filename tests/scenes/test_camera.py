"""Clipping and projection: polygons that reach behind the camera."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_scenes.camera import NEAR, Bend, Camera, clip_frame, clip_near


def camera(**changes):
    values = {
        "width": 320, "height": 180, "s": 50.0, "x": 0.0, "elevation": 1.4, "pitch": 0.0,
        "bend": Bend(0.0, 70.0, 0.0), "side": 1,
    }  # fmt: skip
    return Camera(**(values | changes))


def test_a_point_straight_ahead_at_eye_level_lies_on_the_horizon():
    view = camera().view([0.0, 1.4, 60.0])
    assert np.allclose(camera().project(view), [160.0, camera().horizon])


def test_a_mirrored_street_is_the_mirrored_image():
    view = camera().view([[2.0, 0.0, 60.0]])
    plain, mirrored = camera().project(view), camera(side=-1).project(view)
    assert np.allclose(plain[:, 0] + mirrored[:, 0], 320)
    assert np.allclose(plain[:, 1], mirrored[:, 1])


def test_a_bend_moves_what_is_far_and_not_what_is_near():
    bent = camera(bend=Bend(6.0, 60.0, 1.0))
    near, far = bent.view([[0.0, 0.0, 50.0], [0.0, 0.0, 150.0]])
    assert abs(near[0]) < 1e-4
    assert abs(far[0]) > 1.0


def test_a_polygon_in_front_is_left_alone_and_one_behind_vanishes():
    square = np.array([[0, 0, 2], [1, 0, 2], [1, 1, 2], [0, 1, 2]], np.float32)
    assert np.array_equal(clip_near(square), square)
    assert len(clip_near(square - np.array([0, 0, 3], np.float32))) == 0


def test_a_wall_beside_the_camera_is_cut_at_the_near_plane():
    wall = np.array([[3, 0, -5], [3, 0, 10], [3, 4, 10], [3, 4, -5]], np.float32)
    cut = clip_near(wall)
    assert len(cut) == 4
    assert np.isclose(cut[:, 2].min(), NEAR)
    assert np.isclose(cut[:, 2].max(), 10)
    assert np.allclose(cut[:, 0], 3)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-60, 60, width=32)] * 3), min_size=3, max_size=7))
def test_what_is_left_of_any_polygon_projects_to_small_finite_pixels(corners):
    view = camera()
    cut = clip_near(np.array(corners, np.float32))
    assert len(cut) == 0 or cut[:, 2].min() >= NEAR - 1e-4
    if len(cut) >= 3:
        cut = clip_frame(cut, view)
        if len(cut):
            pixels = view.project(cut)
            assert np.isfinite(pixels).all()
            assert np.abs(pixels).max() < 8 * max(view.width, view.height)
