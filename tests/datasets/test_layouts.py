"""Each layout: its samples, what its label files mean, and its faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.dataset import IGNORE, DatasetPart
from dovit_deploy.datasets.layouts import CAMVID_CLASSES, CAMVID_VOID, CITYSCAPES_CLASSES
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from dovit_scenes import CLASS_NAMES, PALETTE
from dovit_scenes.things import IGNORE_ID
from tests.datasets.labelled_folder import write_labelled
from tests.paths import SHARED

SIZE = (6, 8)
CAMVID = SHARED / "data" / "camvid"


def save(path: Path, values: object, *, size: tuple[int, int] = SIZE) -> None:
    """An image of `size` whose pixels repeat `values`; None: a colour image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    else:
        Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)


@pytest.fixture
def camvid(tmp_path):
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for number in range(3):
            save(root / split / f"0001TP_{number}.png", None)
            save(root / f"{split}annot" / f"0001TP_{number}.png", [number, 10, 11])
    return root


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    for city, number in (("bochum", 1), ("aachen", 0), ("aachen", 2)):
        stem = f"{city}_{number:06d}_000019"
        save(root / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", None)
        save(root / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png", [0, 7, 26, 33])
        # What else lies there is no label map of ids.
        save(root / "gtFine" / "val" / city / f"{stem}_gtFine_instanceIds.png", [250])
    return root


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for folder in ("training", "validation"):
        for number in (1, 2):
            save(root / "images" / folder / f"ADE_{number}.jpg", None)
            save(root / "annotations" / folder / f"ADE_{number}.png", [0, 1, 150])
    return root


def values(data, index: int = 0) -> set[int]:
    return set(np.unique(data.sample(index).label).tolist())


def fails(root, split: str, *, contains: str, sample: int | None = None) -> None:
    with pytest.raises(DatasetError, match=contains):
        data = dataset_from_path(root, split)
        if sample is not None:
            data.sample(sample)


def test_camvids_folders(camvid):
    data = dataset_from_path(camvid, "val")
    assert data.stems == ("0001TP_0", "0001TP_1", "0001TP_2")
    assert data.classes.names == CLASS_NAMES
    assert values(data, 1) == {1, 10, IGNORE}


def test_the_classes_of_rendered_scenes_are_camvids():
    assert tuple(name for name, _ in CAMVID_CLASSES) == CLASS_NAMES
    assert [list(colour) for _, colour in CAMVID_CLASSES] == PALETTE.tolist()
    assert CAMVID_VOID == IGNORE_ID


def test_camvids_list_gives_the_order_and_its_paths_may_be_another_machines(camvid):
    folder = "/SegNet/CamVid"
    lines = [f"{folder}/val/0001TP_{n}.png {folder}/valannot/0001TP_{n}.png" for n in (2, 0)]
    (camvid / "val.txt").write_text("\n".join(lines) + "\n")
    data = dataset_from_path(camvid, "val")
    assert data.stems == ("0001TP_2", "0001TP_0")
    assert values(data, 0) == {2, 10, IGNORE}


@pytest.mark.parametrize(
    ("line", "contains"),
    [
        ("val/0001TP_0.png", "is not an image and its label"),
        ("val/0001TP_0.png valannot/0001TP_1.png", r"'0001TP_0\.png' stands beside the label '0001TP_1\.png'"),
        ("val/0001TP_7.png valannot/0001TP_7.png", r"0001TP_7\.png: missing; val\.txt lists it"),
    ],
)
def test_faults_of_camvids_list(camvid, line, contains):
    (camvid / "val.txt").write_text(line)
    fails(camvid, "val", contains=contains)


@pytest.mark.parametrize("folder", ["val", "valannot"])
def test_an_image_without_partner_is_named(camvid, folder):
    (camvid / folder / "0001TP_1.png").unlink()
    other = "valannot" if folder == "val" else "val"
    fails(camvid, "val", contains=rf"{other}.0001TP_1\.png: there is no (image|label) named '0001TP_1'")


def test_cityscapes_label_ids_become_train_ids(cityscapes):
    data = dataset_from_path(cityscapes, "val")
    assert data.stems == ("aachen_000000_000019", "aachen_000002_000019", "bochum_000001_000019")
    assert values(data) == {IGNORE, 0, 13, 18}
    assert [data.classes.names[number] for number in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert len(CITYSCAPES_CLASSES) == len(data.classes.names) == 19


def test_faults_of_cityscapes(cityscapes):
    label = cityscapes / "gtFine" / "val" / "aachen" / "aachen_000002_000019_gtFine_labelIds.png"
    save(label, [34])
    fails(cityscapes, "val", contains=r"labelIds\.png: pixel value 34; label ids are 0\.\.33", sample=1)
    label.unlink()
    fails(cityscapes, "val", contains=r"aachen_000002_000019_leftImg8bit\.png: it has no label")
    fails(cityscapes, "test", contains="no split 'test'; splits here: val")


def test_ade20k_reduces_the_zero_label(ade20k):
    data = dataset_from_path(ade20k, "val")
    assert len(data) == 2
    assert values(data) == {IGNORE, 0, 149}
    assert len(set(data.classes.palette)) == len(data.classes.names) == 150
    assert dataset_from_path(ade20k, "validation").stems == data.stems
    save(ade20k / "annotations" / "validation" / "ADE_2.png", [151])
    fails(ade20k, "val", contains=r"ADE_2\.png: pixel value 151", sample=1)


def test_ade20k_reads_its_names(ade20k):
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{n}\t0.1\t1\t1\t0\tname {n}, other" for n in range(1, 151))]
    (ade20k / "objectInfo150.txt").write_text("\n".join(rows))
    assert dataset_from_path(ade20k, "val").classes.names[149] == "name 150"
    (ade20k / "objectInfo150.txt").write_text("\n".join(rows[:-1]))
    fails(ade20k, "val", contains=r"objectInfo150\.txt: 149 rows")


def test_one_drive_alone_or_left_out(camvid):
    for number in range(2):
        save(camvid / "val" / f"0006R0_{number}.png", None)
        save(camvid / "valannot" / f"0006R0_{number}.png", [4])
    only, rest = dataset_from_path(camvid, "val:0006R0"), dataset_from_path(camvid, "val:-0006R0")
    assert only.stems == ("0006R0_0", "0006R0_1")
    assert rest.stems == ("0001TP_0", "0001TP_1", "0001TP_2")
    assert values(only) == {4}
    np.testing.assert_allclose(only.class_frequencies(), np.eye(11)[4])
    fails(camvid, "val:0007", contains="of its 5 images none starts with '0007'")
    fails(camvid, "val:-000", contains="of its 5 images all start with '000'")
    fails(camvid, "val:", contains="NAME:PREFIX")
    with pytest.raises(DatasetError, match="no image"):
        DatasetPart(only, [])


def test_check_names_the_first_fault(camvid):
    data = dataset_from_path(camvid, "val")
    data.check()
    save(camvid / "valannot" / "0001TP_2.png", [0], size=(5, 8))
    with pytest.raises(DatasetError, match=r"valannot.0001TP_2\.png: 8x5 pixels, its image has 8x6"):
        data.check()
    DatasetPart(data, [0, 1]).check()


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    write_labelled(tmp_path / "set", images=1)
    fails(tmp_path / "set", "dev", contains=r"dev\.txt: .* splits here: val")


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the CamVid folder is not beside the checkout")
def test_camvid_itself():
    whole, without = dataset_from_path(CAMVID, "train"), dataset_from_path(CAMVID, "train:-0006R0")
    assert (len(whole), len(without), len(dataset_from_path(CAMVID, "val"))) == (367, 266, 101)
    assert whole.classes.names == CLASS_NAMES
    assert whole.sample(0).rgb.shape == (360, 480, 3)
