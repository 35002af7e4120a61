"""What is counted as independent, who says so, and how it is divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.calibrate.images import FolderImages, SplitImages
from dovit_deploy.calibrate.units import Recorded, divided, mean_of_units, neighbours_alike, units_of
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.recording import RecordingRate
from dovit_deploy.errors import UsageError
from dovit_deploy.measure.intervals import Blocks
from tests.datasets.labelled_folder import write_labelled

FRAMES = tuple(f"{drive}_{number:04}" for drive in "ab" for number in range(0, 400, 20))
"""Two drives of 20 frames; at 20 numbers a second one frame a second."""


@pytest.mark.parametrize(
    ("stated", "asked", "rate", "kind", "said_by", "count"),
    [
        (None, None, None, "image", "nobody", 40),
        (RecordingRate(None), None, None, "image", "data set", 40),
        (RecordingRate(20), None, None, "block", "data set", 4),
        (RecordingRate(20), "image", None, "image", "user", 40),
        (RecordingRate(20), "drive", None, "drive", "user", 2),
        (None, "drive", None, "drive", "user", 2),
        (None, None, 40.0, "block", "user", 2),
        (RecordingRate(20), "block", 10.0, "block", "user", 8),
    ],
)
def test_who_says_what_is_counted(stated, asked, rate, kind, said_by, count) -> None:
    units = units_of(Recorded(FRAMES, stated), asked=asked, rate=rate)
    assert (units.kind, units.said_by, units.count) == (kind, said_by, count)


def test_what_cannot_be_counted() -> None:
    with pytest.raises(UsageError, match="--frame-rate HZ, or --unit drive"):
        units_of(Recorded(FRAMES, None), asked="block", rate=None)
    for rate in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            units_of(Recorded(FRAMES, None), asked=None, rate=rate)


def test_a_folder_knows_camvid_by_the_names_of_its_images(tmp_path) -> None:
    root = write_labelled(tmp_path / "set", images=12)
    for number, path in enumerate(sorted((root / "images" / "val").iterdir())):
        path.rename(path.with_name(f"0006R0_f{number * 60:05}{path.suffix}"))
    units = units_of(FolderImages(root / "images" / "val").recorded, asked=None, rate=None)
    assert (units.kind, units.said_by, units.count) == ("block", "data set", 3)


def test_a_data_set_without_a_rate_says_nothing_and_scenes_say_that_they_are_independent(tmp_path) -> None:
    found = dataset_from_path(write_labelled(tmp_path / "set", images=6), "val")
    assert SplitImages(found, name="set", split="val").recorded.stated is None
    assert dataset_from_path("rendered", "val").recording_rate == RecordingRate(None)


@settings(max_examples=30, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=6, max_size=20), st.integers(0, 3))
def test_sets_are_disjoint_and_of_whole_units(lengths: list[int], seed: int) -> None:
    units = Blocks(np.repeat(np.arange(len(lengths)), lengths))
    sizes = (2, 3, len(lengths) - 5)
    sets = divided(units, sizes, seed=seed)
    assert sorted(index for one in sets for index in one) == list(range(sum(lengths)))
    of = [{int(units.number[index]) for index in one} for one in sets]
    assert [len(one) for one in of] == list(sizes)
    assert sets == divided(units, sizes, seed=seed)


def test_every_unit_weighs_the_same() -> None:
    assert mean_of_units([0.0, 0.2, 0.4, 1.0], Blocks(np.array([0, 0, 0, 1]))).tolist() == [pytest.approx(0.2), 1.0]


def test_frames_of_a_video_are_seen_and_independent_images_are_not() -> None:
    generator = np.random.default_rng(0)
    assert all(neighbours_alike(generator.beta(1, 50, 200)) is None for _ in range(300))
    drive = np.convolve(generator.beta(1, 50, 220), np.ones(20), mode="valid")
    assert neighbours_alike(drive) > 0.7
    # Too few to say, nothing that differs, and zeros with a few exceptions.
    assert neighbours_alike(drive[:20]) is neighbours_alike([0.0] * 100) is None
    assert neighbours_alike([0.0] * 95 + [0.1, 0.0, 0.2, 0.0, 0.3]) is None
