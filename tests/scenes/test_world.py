"""The street as data: what moves how fast, what a denser street adds, and that it has no end."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.things import Bicyclist, Building, Car, Pedestrian
from dovit_scenes.world import RANGE, SPEED, camera_at, things_in_sight, world_from_seed


def standing_still(thing):
    """The thing without its position along the street: who it is."""
    return replace(thing, s=0.0)


def test_people_and_traffic_move_and_houses_do_not():
    world = world_from_seed(3, density=1.0)
    before = {standing_still(thing): thing.s for thing in things_in_sight(world, 2.0)}
    moved = {type(thing): set() for thing in before}
    for thing in things_in_sight(world, 2.5):
        start = before.get(standing_still(thing))
        if start is not None:
            moved[type(thing)].add(round(thing.s - start, 3))
    assert moved[Pedestrian] == {0.625, -0.7}
    assert moved[Bicyclist] <= {2.2, -2.0} and moved[Bicyclist]
    assert {0.0, -4.0} <= moved[Car]
    assert moved[Building] == {0.0}


@pytest.mark.parametrize("seed", range(4))
def test_nobody_drives_through_the_camera(seed):
    world = world_from_seed(seed, density=1.0)
    for step in range(0, 400, 7):
        time_s = step / 5
        for thing in things_in_sight(world, time_s):
            left, right, near, _ = thing.footprint
            if left < 0.9 and right > -0.9 and isinstance(thing, Car | Bicyclist | Pedestrian):
                assert near - SPEED * time_s > 8.0


def test_a_denser_street_holds_everything_that_a_thinner_one_holds():
    thin, dense = (set(things_in_sight(world_from_seed(5, density=d), 4.0)) for d in (0.3, 0.9))
    assert thin < dense


@pytest.mark.parametrize(
    ("seed", "density", "time_s", "digest"),
    [(3, 0.7, 4.0, "283fadbb48942a16"), (11, 0.2, 9.5, "edd7b91dddffa7f8")],
)
def test_streets_stay_what_they_are(seed, density, time_s, digest):
    """Models were trained and figures published on these streets: who changes one must do so on purpose."""
    things = things_in_sight(world_from_seed(seed, density=density), time_s)
    facts = sorted((type(t).__name__, round(t.x, 4), round(t.s, 4), getattr(t, "seed", 0)) for t in things)
    assert hashlib.sha256(repr(facts).encode()).hexdigest().startswith(digest)


def test_a_larger_share_holds_everything_that_a_smaller_one_holds():
    few, more, all_ = (set(things_in_sight(world_from_seed(5, share=share), 4.0)) for share in (0.2, 0.6, 1.0))
    assert few < more < all_ == set(things_in_sight(world_from_seed(5), 4.0))
    assert 0.5 * len(all_) < len(more) < 0.7 * len(all_)
    assert things_in_sight(world_from_seed(5, share=0.0), 4.0) == []
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(SceneArgumentError, match=r"share .* outside 0\.\.1"):
            world_from_seed(5, share=share)


def test_a_street_goes_on_for_ever_and_no_more_of_it_is_ever_in_sight():
    world = world_from_seed(6, density=0.5)
    for time_s in (0.0, 600.0, 36_000.0):
        things = things_in_sight(world, time_s)
        assert 80 < len(things) < 500
        camera = camera_at(world, time_s, size=(360, 640))
        for thing in things:
            _, _, near, far = thing.footprint
            assert far > camera.s and near < camera.s + RANGE
