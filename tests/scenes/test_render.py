"""Rendered frames: determinism, labels, coherence over time, what density does."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_scenes import CLASS_NAMES, PALETTE, SceneClass, render, street_frames, world_from_seed
from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.render import paint_order
from dovit_scenes.world import things_in_slot

SIZE = (90, 160)


def test_the_classes_are_camvids_in_camvids_order():
    expected = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    assert list(CLASS_NAMES) == expected.split()
    assert PALETTE.shape == (11, 3)
    assert PALETTE[SceneClass.ROAD].tolist() == [128, 64, 128]
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 11


def test_a_frame_has_the_promised_arrays():
    frame = render(world_from_seed(3), 5, size=(75, 131))
    assert frame.rgb.shape == (75, 131, 3)
    assert frame.rgb.dtype == np.uint8
    assert frame.labels.shape == (75, 131)
    assert frame.labels.dtype == np.uint8
    assert len(frame.visible) == 11
    assert frame.objects == sum(frame.visible)


def test_the_same_seed_gives_the_same_frame_with_or_without_caches():
    first = render(world_from_seed(3, density=0.7), 12, size=SIZE)
    things_in_slot.cache_clear()
    second = render(world_from_seed(3, density=0.7), 12, size=SIZE)
    assert np.array_equal(first.rgb, second.rgb)
    assert np.array_equal(first.labels, second.labels)
    assert first.visible == second.visible


def test_a_share_leaves_things_out_and_changes_nothing_else():
    whole = render(world_from_seed(3, density=0.7), 12, size=SIZE)
    every = render(world_from_seed(3, density=0.7, share=1.0), 12, size=SIZE)
    assert np.array_equal(whole.rgb, every.rgb)
    assert np.array_equal(whole.labels, every.labels)
    counts = [render(world_from_seed(3, density=0.7, share=share), 12, size=SIZE).objects for share in (0.0, 0.1, 0.4)]
    assert counts[0] == 0 < counts[1] < counts[2] < whole.objects
    # What is left is ground, sky and the skyline far away.
    bare = render(world_from_seed(3, density=0.7, share=0.0), 12, size=SIZE)
    assert bare.labels[SIZE[0] // 2 + 6 :].max() <= SceneClass.PAVEMENT
    assert not np.isin(bare.labels, [SceneClass.POLE, SceneClass.SIGN, SceneClass.FENCE, SceneClass.CAR]).any()


def test_different_seeds_are_different_streets():
    labels = [render(world_from_seed(seed), 20, size=SIZE).labels for seed in (1, 2, 3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (labels[one] != labels[other]).mean() > 0.05


def test_a_frame_alone_equals_the_frame_of_a_sequence():
    frames = list(street_frames(4, seed=1, size=SIZE, density=0.8))
    alone = render(world_from_seed(1, density=0.8), 3, size=SIZE)
    assert np.array_equal(frames[3].rgb, alone.rgb)
    assert np.array_equal(frames[3].labels, alone.labels)


def test_every_class_appears_and_none_besides():
    seen: set[int] = set()
    for seed in (1, 2, 3, 4):
        seen |= set(np.unique(render(world_from_seed(seed, density=0.8), 20, size=SIZE).labels).tolist())
    assert seen == set(range(11))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sky_is_above_and_road_below(seed):
    labels = render(world_from_seed(seed, density=0.0), 20, size=SIZE).labels
    assert not (labels[SIZE[0] * 2 // 3 :] == SceneClass.SKY).any()
    assert (labels[-5:, SIZE[1] // 2] == SceneClass.ROAD).all()
    assert not (labels[: SIZE[0] // 3] == SceneClass.ROAD).any()


def test_neighbouring_frames_agree_on_most_pixels_and_yet_move():
    frames = list(street_frames(8, seed=2, size=SIZE, density=0.6))
    for before, after in pairwise(frames):
        agree = float((before.labels == after.labels).mean())
        assert 0.9 < agree < 1.0
    far = float((frames[0].labels == frames[-1].labels).mean())
    assert far < agree


def test_the_image_does_not_flicker_where_nothing_moves():
    first, second = street_frames(2, seed=2, size=SIZE, density=0.0)
    sky = (first.labels == SceneClass.SKY) & (second.labels == SceneClass.SKY)
    # A tree line or lamp that moves by a pixel changes the edge of the sky, not its inside.
    sky = cv2.erode(sky.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    assert sky.sum() > 500
    step = np.abs(first.rgb[sky].astype(int) - second.rgb[sky].astype(int))
    assert step.mean() < 6
    assert np.abs(first.rgb[sky].mean(axis=0) - second.rgb[sky].mean(axis=0)).max() < 1


def test_a_parked_camera_sees_the_street_stand_and_others_pass():
    empty = [frame.labels for frame in street_frames(6, seed=2, size=SIZE, density=0.0, fps=2, speed=0.0)]
    assert all((labels == empty[0]).all() for labels in empty)
    crowded = [frame.labels for frame in street_frames(6, seed=2, size=SIZE, density=0.9, fps=2, speed=0.0)]
    assert any((labels != crowded[0]).any() for labels in crowded)


def test_a_slow_camera_is_later_where_a_fast_one_was():
    slow, usual = (list(street_frames(5, seed=2, size=SIZE, density=0.0, speed=speed)) for speed in (0.5, 1.0))
    np.testing.assert_array_equal(slow[4].labels, usual[2].labels)
    assert (slow[4].labels != usual[4].labels).any()


def test_an_empty_street_has_no_road_users():
    for seed in (1, 2, 3):
        frame = render(world_from_seed(seed, density=0.0), 20, size=SIZE)
        users = [SceneClass.CAR, SceneClass.PEDESTRIAN, SceneClass.BICYCLIST]
        assert not np.isin(frame.labels, users).any()
        assert not any(frame.visible[kind] for kind in users)


def test_the_count_of_objects_rises_with_density():
    means = [
        np.mean([render(world_from_seed(seed, density=density), 20, size=SIZE).objects for seed in (1, 2, 3)])
        for density in (0.0, 0.5, 1.0)
    ]
    assert means[0] + 2 < means[1]
    assert means[1] + 2 < means[2]


def test_only_what_shows_is_counted_and_ground_and_sky_never():
    frame = render(world_from_seed(1, density=1.0), 60, size=(180, 320))
    assert frame.visible[SceneClass.SKY] == frame.visible[SceneClass.ROAD] == frame.visible[SceneClass.PAVEMENT] == 0
    for kind, count in enumerate(frame.visible):
        # Each counted thing owns at least one pixel in 10,000.
        assert (frame.labels == kind).sum() >= count * (180 * 320 // 10_000)
    assert frame.visible[SceneClass.CAR] >= 3


def test_the_size_changes_the_sampling_and_not_the_scene():
    world = world_from_seed(2, density=0.5)
    small = render(world, 0, size=SIZE).labels
    large = render(world, 0, size=(2 * SIZE[0], 2 * SIZE[1])).labels[::2, ::2]
    assert (small == large).mean() > 0.96


def test_the_frame_rate_is_only_a_clock():
    world = world_from_seed(2, density=0.5)
    slow, fast = render(world, 4, size=SIZE, fps=15.0), render(world, 8, size=SIZE, fps=30.0)
    assert np.array_equal(slow.labels, fast.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": 1, "density": 1.5}, "density 1.5"),
        ({"seed": 1, "density": float("nan")}, "density nan"),
        ({"seed": 1, "speed": -0.1}, "-0.1 times its usual speed"),
        ({"seed": 1, "speed": float("nan")}, "nan times"),
        ({"seed": 1, "size": (8, 640)}, "640x8"),
        ({"seed": 1, "size": (360, 100_000)}, "100000x360"),
    ],
)
def test_impossible_scenes_are_refused_at_once(arguments, message):
    with pytest.raises(SceneArgumentError, match=message):
        street_frames(1, **arguments)


def test_a_negative_count_or_frame_is_refused():
    with pytest.raises(SceneArgumentError, match="-1 frames"):
        street_frames(-1, seed=0)
    with pytest.raises(SceneArgumentError, match="frame -2"):
        render(world_from_seed(0), -2, size=SIZE)
    assert list(street_frames(0, seed=0)) == []


# The painter's order: who may hide whom.


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
