"""The painter's order: who may hide whom."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.scenes.order import paint_order


def order(*boxes):
    return paint_order(np.array(boxes, np.float32).reshape(-1, 4))


def test_farther_things_come_first():
    assert order((-1, 1, 10, 12), (-1, 1, 30, 32), (-1, 1, 20, 22)) == [1, 2, 0]


def test_somebody_behind_a_parked_car_is_painted_before_it_though_nearer():
    car, person = (-3.6, -1.8, 20.0, 24.4), (-4.6, -4.1, 20.2, 20.7)
    assert order(car, person) == [1, 0]
    assert order(person, car) == [0, 1]


def test_somebody_between_a_parked_car_and_the_camera_is_painted_after_it():
    car, rider = (-3.6, -1.8, 20.0, 24.4), (-1.6, -1.1, 22.0, 23.8)
    assert order(rider, car) == [1, 0]


def test_a_long_wall_comes_before_everything_on_its_pavement():
    wall, near, far = (9.0, 19.0, 5.0, 30.0), (7.0, 7.5, 6.0, 6.5), (7.0, 7.5, 29.0, 29.5)
    assert order(near, wall, far) == [1, 2, 0]


def test_nothing_and_boxes_inside_one_another_are_ordered_too():
    assert order() == []
    assert sorted(order((0, 1, 5, 6), (0, 1, 5, 6), (0.2, 0.4, 5.2, 5.4))) == [0, 1, 2]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0.1, 6), st.floats(0.5, 80), st.floats(0.1, 20)), max_size=14))
def test_every_box_is_painted_once_and_none_over_one_that_is_wholly_nearer(raw):
    boxes = np.array([(x, x + w, z, z + d) for x, w, z, d in raw], np.float32).reshape(-1, 4)
    result = paint_order(boxes)
    assert sorted(result) == list(range(len(boxes)))
    if len(boxes) == 2 and boxes[0, 2] > boxes[1, 3] and _overlap_seen(boxes):
        assert result == [0, 1]


def _overlap_seen(boxes):
    """Do two boxes overlap sideways, so that the nearer really may hide the farther?"""
    return boxes[0, 0] < boxes[1, 1] and boxes[1, 0] < boxes[0, 1]
