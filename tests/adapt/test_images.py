"""What IMAGES may be, which of them are taken, and what each is for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dovit_deploy.adapt import images as rooms
from dovit_deploy.adapt.division import divided
from dovit_deploy.adapt.images import alike, check_limit, given_images, spread
from dovit_deploy.calibrate.units import Recorded, units_of
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError, OutputFailed, SourceError, UsageError
from dovit_deploy.sources.source import FailedFrame, Frame, VideoInfo
from tests.adapt.dense_networks import write_images
from tests.train.tiny_folder import write_folder


def nothing() -> None:
    """Nobody watches."""


def opened(given: object, folder: Path, *, limit: int | None = None) -> rooms.Opened:
    return given_images(str(given), limit=limit, folder=folder, advance=nothing)


@pytest.mark.parametrize(
    ("count", "most", "taken"),
    [(3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (1, 5, [0]), (0, 5, []), (101, 2, [0, 100])],
)
def test_of_many_some_are_taken_evenly(count: int, most: int, taken: list[int]) -> None:
    assert spread(count, most) == taken


def test_images_of_a_folder_or_a_pattern(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 9, bad=2)
    whole, some = opened(folder, tmp_path), opened(folder / "0*[02468].png", tmp_path, limit=5)
    assert len(whole.images) == 9 and whole.total == 11 and len(whole.failed) == 2
    assert "cannot be decoded" in whole.failed[0]
    assert [Path(stem).name for stem in some.images.stems] == ["000.png", "002.png", "004.png", "006.png", "008.png"]
    assert some.images.image(1).rgb.shape == (48, 64, 3) and some.images.image(1).label is None
    assert whole.remarks() == [
        "9 images: gates are fitted to and thresholds searched on the same half; 20 or more are better"
    ]


def test_a_limit_is_said(tmp_path: Path) -> None:
    found = opened(write_images(tmp_path / "images", 30), tmp_path, limit=20)
    assert len(found.images) == 20
    assert found.remarks() == [f"{tmp_path}/images: 20 of 30 images are taken, spread evenly (--limit)"]


def test_images_of_a_data_set_are_divided_by_its_recording(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", images=8, splits=("train", "val"))
    assert len(opened(root, tmp_path).images) == 8
    # A label that nobody reads may be anything.
    next((root / "labels" / "val").glob("*.png")).write_bytes(b"no image")
    held = opened(f"{root}:val", tmp_path)
    assert len(held.images) == 8 and not held.failed
    half = opened(f"{root}:val", tmp_path, limit=5)
    wanted = dataset_from_path(root, "train").sample(0)
    np.testing.assert_array_equal(opened(root, tmp_path).images.image(0).rgb, wanted.rgb)
    assert half.total == 8
    assert held.images.split is None and not held.images.labelled
    with pytest.raises(DatasetError, match="nowhere"):
        opened(f"{root}:nowhere", tmp_path)


@pytest.mark.parametrize(("count", "bad"), [(1, 0), (4, 0), (4, 3)])
def test_fewer_than_five_are_refused(tmp_path: Path, count: int, bad: int) -> None:
    folder = write_images(tmp_path / "images", count, bad=bad)
    with pytest.raises(DatasetError, match=f"{count} images?.*; at least 5 are needed.*better 20") as raised:
        opened(folder, tmp_path)
    assert ("3 more cannot be read" in str(raised.value)) == bool(bad)


def test_what_is_not_there_or_has_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no image in this folder"):
        opened(tmp_path / "empty", tmp_path)
    with pytest.raises(SourceError, match="no such file or folder"):
        opened(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UsageError, match="--limit 4: at least 5 images are needed"):
        check_limit(4)


def test_an_address_is_a_stream_and_no_split_of_a_data_set(tmp_path: Path) -> None:
    # What follows its colon is no split: it is asked for as a stream, here of a kind that is not read.
    with pytest.raises(SourceError, match="streams are read from rtsp"):
        opened("gopher://street/1", tmp_path)


class Clip:
    """A video of `count` frames, frame number i all of value i; `broken` ones fail."""

    kind, name, ended_early = "video", "clip.mp4", None
    video = VideoInfo((2, 3), Fraction(10), Fraction(1, 10), has_audio=False, path=None)

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __iter__(self):
        for index in range(self.count):
            if index in self.broken:
                yield FailedFrame("clip.mp4", f"frame {index} cannot be decoded", index)
            else:
                yield Frame(np.full((2, 3, 3), index, np.uint8), index, "clip.mp4", index)


@pytest.mark.parametrize(
    ("count", "most", "step"), [(5, 8, 1), (8, 8, 1), (9, 8, 1), (16, 8, 1), (17, 8, 2), (33, 5, 4), (200, 8, 16)]
)
def test_frames_are_spread_over_a_video_whose_length_nobody_knows(
    tmp_path: Path, count: int, most: int, step: int
) -> None:
    found = rooms._of_source(Clip(count), most, tmp_path, nothing)
    kept = list(range(0, count, step))
    # As many as are asked for, of every n-th.
    wanted = [kept[number] for number in spread(len(kept), most)]
    assert [int(found.images.image(number).rgb[0, 0, 0]) for number in range(len(found.images))] == wanted
    assert len(wanted) == min(count, most) and found.total == count
    # Nothing is left of frames that were given up.
    assert len(list(tmp_path.iterdir())) == len(wanted)


def test_frames_that_fail_are_left_out(tmp_path: Path) -> None:
    found = rooms._of_source(Clip(10, broken=(3, 4)), 20, tmp_path, nothing)
    assert len(found.images) == 8 and found.failed == ("frame 3 cannot be decoded", "frame 4 cannot be decoded")


def test_a_full_disk_takes_no_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_frame_file", lambda folder, index: Path("/dev/full"))
    with pytest.raises(OutputFailed, match=r"cannot write .*: No space left on device"):
        rooms._of_source(Clip(10), 20, tmp_path, nothing)


def test_a_video_says_when_its_frames_were_recorded(tmp_path: Path) -> None:
    found = rooms._of_source(Clip(250), 60, tmp_path, nothing).images
    units = units_of(found.recorded, asked=None, rate=None)
    # 25 s at 10 frames a second.
    assert (units.kind, units.said_by, units.count) == ("block", "data set", 3)
    assert len(found.part([0, 59]).recorded.moments() or ()) == 2


@pytest.mark.parametrize("count", [5, 12, 19, 20, 41, 256])
def test_what_is_held_out_was_neither_fitted_to_nor_searched_on(tmp_path: Path, count: int) -> None:
    names = tuple(map(str, range(count)))
    images = rooms.UnlabelledImages("x", names, alike(count), (nothing,) * count, Recorded.of_files(names))
    division = divided(images)
    fitted = {images.stems[index] for index in division.fitted}
    held_out = {division.judged.stems[index] for index in division.held_out}
    assert fitted and held_out and not fitted & held_out
    assert len(held_out) < len(division.judged)
    if count >= rooms.ENOUGH:
        assert not fitted & set(division.judged.stems)
    # Enough for intervals where nothing says when they were recorded.
    assert division.judged.blocks.of(division.held_out).count >= (8 if count > 40 else 1)
