"""The line that explains a data set: what it counts, and when it doubts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.dataset import IGNORE, LabelledFiles
from dovit_deploy.datasets.open import dataset_from_path, labelled_images_from_path
from dovit_deploy.datasets.summary import SAMPLED, summary_of
from tests.datasets.class_folders import write_class_folders
from tests.datasets.labelled_folder import VOID, ade20k_folder, write_labelled


def line_of(data) -> str:
    line, *_ = summary_of(data).lines()
    return line


def test_a_sound_data_set_in_one_line(tmp_path):
    data = dataset_from_path(write_labelled(tmp_path / "set", images=4), "val")
    found = summary_of(data)
    assert found.lines() == [
        f"{tmp_path / 'set'} (val): classes.json with images/ and labels/; 4 images; 5 classes, none empty; "
        f"void 1.7% (value {VOID})"
    ]
    labels = np.stack([data.label(number) for number in range(4)])
    assert found.void == pytest.approx((labels == IGNORE).mean())
    assert (found.empty, found.labels_read, found.ignored, found.doubt) == ((), 4, 0, None)


def test_foreign_files_are_counted_and_the_first_is_named(tmp_path):
    root = ade20k_folder(tmp_path / "set", values=(0, 1, 150))
    assert "ignored" not in line_of(dataset_from_path(root, "val"))
    for name in ("images/validation/Thumbs.db", "annotations/validation/desktop.ini", "images/validation/.DS_Store"):
        (root / name).write_bytes(b"x")
    (root / "images/validation/.ADE_1.jpg").write_bytes(b"another program's note")
    data = dataset_from_path(root, "val")
    assert line_of(data).endswith("; ignored 4 other files (.ADE_1.jpg, ...)")
    data.check()
    # Of the split that is read alone.
    assert summary_of(dataset_from_path(root, "train")).ignored == 0


def test_only_so_many_labels_are_read_and_they_are_spread(tmp_path, monkeypatch):
    data = dataset_from_path(write_labelled(tmp_path / "set", images=40), "val")
    read = []
    counts = LabelledFiles.stored_counts
    monkeypatch.setattr(LabelledFiles, "stored_counts", lambda self, i: read.append(i) or counts(self, i))
    assert f"in {SAMPLED} of the label maps" in line_of(data)
    assert len(read) == SAMPLED and read[0] == 0 and read[-1] == 39 and max(np.diff(read)) == 2
    read.clear()
    assert "10 images" in line_of(dataset_from_path(tmp_path / "set", "val:drive_03"))
    assert read == list(range(30, 40))


def test_a_mask_of_0_and_255_is_doubted(tmp_path):
    root = write_labelled(tmp_path / "set", images=1, classes=2)
    (root / "classes.json").write_text(json.dumps({"classes": ["background", "road"]}))
    mask = np.zeros((60, 80), np.uint8)
    mask[:15] = 255
    Image.fromarray(mask).save(root / "labels" / "val" / "drive_000.png")
    line, doubt = summary_of(dataset_from_path(root, "val")).lines()
    assert "1 of 2 classes, empty: road; void 25.0% (value 255)" in line
    assert "255 was taken as void" in doubt and "'road' has no pixel" in doubt
    # Where the list itself says so it is meant.
    (root / "classes.json").write_text(json.dumps({"classes": ["background", "road"], "ignore": 255}))
    assert summary_of(dataset_from_path(root, "val")).doubt is None


def test_own_classes_in_ade20ks_folders_are_doubted_until_they_are_listed(tmp_path):
    root = ade20k_folder(tmp_path / "set", values=(0, 1, 2))
    line, doubt = summary_of(dataset_from_path(root, "val")).lines()
    assert "ADE20K; 2 images; 2 of 150 classes, empty: class 3, class 4, class 5, ..." in line
    assert "no pixel value is above 2" in doubt and "--classes" in doubt
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    found = summary_of(dataset_from_path(root, "val"))
    assert (
        found.doubt is None and "ADE20K, classes of classes.json; 2 images; 3 classes, none empty" in found.lines()[0]
    )
    assert summary_of(dataset_from_path(ade20k_folder(tmp_path / "real", values=(0, 1, 150)), "val")).doubt is None


def test_class_folders_and_rendered_scenes(tmp_path):
    root = write_class_folders(tmp_path / "set", folders=("a", "b"), images=2)
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    (root / "val" / "a" / "Thumbs.db").write_bytes(b"x")
    found = line_of(labelled_images_from_path(root, "val"))
    assert "class folders; 4 images; 2 of 3 classes, empty: c; ignored 1 other file (Thumbs.db)" in found
    assert line_of(dataset_from_path("rendered", "val")).endswith("rendered street scenes; 100 images; 11 classes")
