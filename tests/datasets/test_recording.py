"""When images were recorded: from their stems and the rate that the data set, its layout or CamVid's drives give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovit_deploy.datasets.dataset import DatasetPart
from dovit_deploy.datasets.open import dataset_from_path, labelled_images_from_path
from dovit_deploy.datasets.recording import Moment, RecordingRate, moments_from_stems
from dovit_deploy.errors import DatasetError
from tests.datasets.class_folders import write_class_folders
from tests.datasets.labelled_folder import ade20k_folder, write_labelled


def state(root: Path, rate: object) -> None:
    """Write `rate` into the folder's classes.json."""
    path = root / "classes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "frame_rate": rate}))


@pytest.mark.parametrize(
    ("stem", "drive", "frame"),
    [
        ("0001TP_006690", "0001TP", 6690),
        ("0006R0_f00930", "0006R0", 930),
        ("aachen_000001_000019", "aachen_000001", 19),
        ("clip_frame12", "clip", 12),
        ("frame00012", "", 12),
        ("7", "", 7),
    ],
)
def test_drive_and_frame_stand_in_the_stem(stem, drive, frame):
    assert moments_from_stems([stem], RecordingRate(10.0)) == (Moment(drive, frame / 10),)


def test_an_image_without_a_number_stands_alone():
    assert moments_from_stems(["a_1", "tree", "b_1c"], RecordingRate(1.0)) == (("a", 1.0), ("tree", 0.0), ("b_1c", 0.0))


def test_camvid_is_known_by_its_drives_in_whatever_folders_it_lies():
    stems = ["0001TP_006690", "0006R0_f00930", "0016E5_08159", "Seq05VD_f00000"]
    assert [moment.second for moment in moments_from_stems(stems, None)] == [223.0, 31.0, 8159 / 30, 0.0]
    assert moments_from_stems([*stems, "drive_000"], None) is None
    # What the data set states takes precedence.
    assert moments_from_stems(stems, RecordingRate(None)) is None
    assert moments_from_stems(stems, RecordingRate(15.0))[0].second == 446.0


def test_a_rate_in_classes_json(tmp_path):
    root = write_labelled(tmp_path / "set", images=4)
    assert dataset_from_path(root, "val").moments is None
    state(root, 2)
    data = dataset_from_path(root, "val")
    assert data.moments == tuple(Moment("drive", number / 2) for number in range(4))
    assert DatasetPart(data, [3, 1]).moments == (Moment("drive", 1.5), Moment("drive", 0.5))
    state(root, None)
    assert dataset_from_path(root, "val").moments is None


@pytest.mark.parametrize("rate", [0, -1, "30", True, float("inf"), float("nan"), [30]])
def test_what_is_no_rate(tmp_path, rate):
    root = write_labelled(tmp_path / "set", images=1)
    state(root, rate)
    with pytest.raises(DatasetError, match=r"frame_rate.*frames a second") as raised:
        dataset_from_path(root, "val")
    assert "classes.json" in str(raised.value)


def test_what_the_layouts_know(tmp_path):
    city = tmp_path / "city"
    for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = city / kind / "val" / "ulm"
        folder.mkdir(parents=True)
        for frame in (19, 189):
            (folder / f"ulm_000001_{frame:06d}_{end}.png").touch()
    assert dataset_from_path(city, "val").moments == (Moment("ulm_000001", 19 / 17), Moment("ulm_000001", 189 / 17))
    assert dataset_from_path(ade20k_folder(tmp_path / "ade", values=[1, 2]), "val").moments is None
    assert dataset_from_path("rendered", "val").moments is None
    folders = write_class_folders(tmp_path / "folders", folders=("n01", "n02"), images=1)
    assert labelled_images_from_path(folders, "val").moments is None
