"""Which frames a report shows: evenly spread, and the extremes, in memory that does not grow."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.runtime import album as module
from dovit_deploy.runtime.album import (
    APART_S,
    EXTREMES,
    LONGER_SIDE,
    MOST_EVEN,
    STILL_BYTES,
    Album,
    encoded,
    encoded_together,
)
from dovit_deploy.runtime.classification import Classifier
from dovit_deploy.runtime.results import ShownPicture
from dovit_deploy.runtime.segmentation import Predictor
from tests.fakes import FakeClassifierSession, FakeSession

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def row(number, gmacs=1.0, rate=10, **more):
    return {
        "index": number,
        "source": f"{number}.png",
        "time_s": number / rate,
        "gmacs": {"actual": gmacs, "dense": 10.0},
        "flops_saved": 0.1,
        "latency_ms": {"total": 5.0},
        **more,
    }


@pytest.fixture(scope="module")
def result():
    return Predictor(FakeSession()).predict(RGB)


def filled(costs, result, *, video=False, **more):
    album = Album(video=video)
    for number, cost in enumerate(costs):
        album.add(row(number, cost, **more), result)
    return album


def numbers(stills):
    return [int(still.name.removesuffix(".png").split()[-1].split(".")[0]) for still in stills]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 300))
def test_even_ones_are_as_far_apart_as_each_other_and_few(count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "encoded_together", lambda shown: ())
        album = filled([1.0] * count, Predictor(FakeSession()).predict(RGB))
    found = numbers(album.even)
    steps = set(np.diff(found).tolist())
    assert found[0] == 0 and len(steps) <= 1 and min(count, MOST_EVEN // 2) <= len(found) <= MOST_EVEN
    # The next one would lie beyond the end.
    assert found[-1] + (steps or {1}).pop() >= count


@settings(max_examples=25, deadline=None)
@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_of_images_the_hardest_and_easiest_are_those_that_are(costs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "encoded_together", lambda shown: ())
        album = filled([float(cost) for cost in costs], Predictor(FakeSession()).predict(RGB))
    hardest, easiest = ([costs[number] for number in numbers(which)] for which in (album.hardest, album.easiest))
    assert hardest == sorted(costs, reverse=True)[:EXTREMES] and easiest == sorted(costs)[:EXTREMES]


def test_of_a_video_they_are_a_second_apart(result):
    costs = [5, 9, 8, 7] + [1] * 10 + [6, 6.5] + [1] * 20
    album = filled(costs, result, video=True)
    times = [float(still.name.split(" at ")[1].removesuffix(" s")) for still in album.hardest]
    assert times[:2] == [0.1, 1.5] and all(abs(a - b) >= APART_S for a in times for b in times if a is not b)


def test_a_frame_that_repeats_another_is_no_extreme(result):
    album = Album(video=True)
    album.add(row(0, 2.0), result)
    album.add(row(30, 1.0, still=True), result)
    assert [still.name for still in album.easiest] == ["frame 0 at 0.00 s"] and len(album.even) == 2


def test_shares_are_means_over_all_frames_and_colours_have_names(result):
    other = Predictor(FakeSession(seed=3)).predict(RGB[::-1].copy())
    album = Album(video=False)
    for number, given_result in enumerate((result, result, other)):
        album.add(row(number), given_result)
    found = {share.id: share.share for share in album.shares}
    assert sum(found.values()) == pytest.approx(1)
    for number, share in found.items():
        wanted = np.mean([np.mean(one.class_map == number) for one in (result, result, other)])
        assert share == pytest.approx(wanted)
    assert [share.share for share in album.shares] == sorted(found.values(), reverse=True)
    assert [name for name, _ in album.key] == ["stopped before layer 1", "stopped before layer 2", "ran to the end"]


def test_of_a_classifier_the_answer_is_lettered_and_selections_are_shown():
    result = Classifier(FakeClassifierSession()).predict(RGB)
    album = Album(video=False)
    album.add(row(0), result)
    assert [picture.name for picture in album.even[0].pictures] == ["input", "answer", "selected tokens"]
    assert album.shares == () and album.key[0][0] == "selected 0 of 2"


def test_pictures_are_small_and_flat_colours_stay_what_they_are():
    flat = np.zeros((100, 1000, 3), np.uint8)
    flat[:, 500:] = (200, 10, 30)
    mask = cv2.imdecode(np.frombuffer(encoded(ShownPicture("mask", flat, flat=True)), np.uint8), cv2.IMREAD_COLOR)
    assert mask.shape == (48, LONGER_SIDE, 3)
    assert {tuple(pixel) for pixel in mask.reshape(-1, 3).tolist()} == {(0, 0, 0), (30, 10, 200)}
    photo = encoded(ShownPicture("input", RGB))
    assert photo.startswith(b"\xff\xd8") and cv2.imdecode(np.frombuffer(photo, np.uint8), 1).shape == RGB.shape


def test_pictures_full_of_detail_are_as_coarse_as_it_takes():
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    shown = (ShownPicture("input", noise), ShownPicture("mask", noise // 128 * 255, flat=True))
    pictures = encoded_together((*shown, ShownPicture("exit depth", noise)))
    assert [picture.name for picture in pictures] == ["input", "mask", "exit depth"]
    assert sum(len(picture.content) for picture in pictures) <= STILL_BYTES
    sizes = {cv2.imdecode(np.frombuffer(picture.content, np.uint8), 1).shape for picture in pictures}
    assert len(sizes) == 1
    # 22 frames in base64, and the rest of the page.
    assert (MOST_EVEN + 2 * EXTREMES) * STILL_BYTES * 4 / 3 < 2_600_000
    plain = encoded_together((ShownPicture("input", np.full((600, 600, 3), 90, np.uint8)),))
    assert cv2.imdecode(np.frombuffer(plain[0].content, np.uint8), 1).shape == (LONGER_SIDE, LONGER_SIDE, 3)
