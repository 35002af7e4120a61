"""Class folders: the numbers of the classes, splits, and every fault named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.classification import LISTS, has_class_folders
from dovit_deploy.datasets.open import labelled_images_from_path
from dovit_deploy.errors import DatasetError
from tests.datasets.class_folders import write_class_folders


@pytest.fixture
def root(tmp_path):
    return write_class_folders(tmp_path / "set", folders=("n02", "n01", "n10"), images=2)


def labels(data):
    return {stem: file.label for stem, file in zip(data.stems, data.files, strict=True)}


def test_without_a_list_the_folders_count_in_the_order_of_their_names(root):
    data = labelled_images_from_path(root, "val")
    assert [entry.folder for entry in data.classes] == ["n01", "n02", "n10"]
    assert len(data) == 6 and data.stems[0] == "n01/n01_0"
    assert {stem[:3]: label for stem, label in labels(data).items()} == {"n01": 0, "n02": 1, "n10": 2}
    sample = data.sample(5)
    assert (sample.stem, sample.label) == ("n10/n10_1", 2)
    np.testing.assert_array_equal(sample.rgb, np.array(Image.open(root / "val/n10/n10_1.png")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", '["n10", "n02", "n05", "n01"]'),
        ("classes.json", '{"0": "n10", "1": "n02", "2": "n05", "3": "n01"}'),
        ("imagenet_class_index.json", '{"3": ["n01", "d"], "0": ["n10", "a"], "1": ["n02", "b"], "2": ["n05", "c"]}'),
        ("synsets.txt", "n10\nn02\nn05\nn01\n"),
        ("synset_words.txt", "n10 ten, tens\nn02 two\nn05 five\nn01 one\n"),
        ("LOC_synset_mapping.txt", "n10 ten\nn02 two\n\nn05 five\nn01 one"),
    ],
)
def test_a_list_gives_the_numbers_and_may_name_classes_without_images(root, name, text):
    (root / name).write_text(text)
    data = labelled_images_from_path(str(root), "val")
    assert [entry.folder for entry in data.classes] == ["n10", "n02", "n05", "n01"]
    assert {stem[:3]: label for stem, label in labels(data).items()} == {"n10": 0, "n02": 1, "n01": 3}
    assert name in data.order and name in LISTS
    if "ten" in text:
        assert data.classes[0].name.startswith("ten")
    if "c" in text and name.endswith("index.json"):
        assert [entry.name for entry in data.classes] == ["a", "b", "c", "d"]


def test_part_of_a_split(root):
    assert set(labels(labelled_images_from_path(root, "val:n01/"))) == {"n01/n01_0", "n01/n01_1"}
    rest = labelled_images_from_path(root, "val:-n01/")
    assert len(rest) == 4 and len(rest.classes) == 3
    for wrong in ("", ":", "val:", "val:-"):
        with pytest.raises(DatasetError, match="NAME:PREFIX"):
            labelled_images_from_path(root, wrong)
    with pytest.raises(DatasetError, match="none starts with 'zebra'"):
        labelled_images_from_path(root, "val:zebra")
    listed = root / "listed.txt"
    listed.write_text("n01/n01_0\n")
    assert labels(labelled_images_from_path(root, f"val:@{listed}")).keys() == {"n01/n01_0"}
    assert len(labelled_images_from_path(root, f"val:-@{listed}")) == 5


def test_what_is_no_image_is_not_counted(root):
    (root / "val" / "n01" / "notes.txt").write_text("x")
    (root / "val" / "n01" / ".hidden.png").write_bytes(b"x")
    (root / "val" / ".cache").mkdir()
    (root / "val" / "empty").mkdir()
    (root / "val" / "list.txt").write_text("x")
    data = labelled_images_from_path(root, "val")
    assert len(data) == 6 and len(data.classes) == 3


def test_a_damaged_image_is_found_and_named(root):
    labelled_images_from_path(root, "val").check()
    (root / "val" / "n10" / "n10_1.png").write_bytes(b"not an image")
    data = labelled_images_from_path(root, "val")
    with pytest.raises(DatasetError, match=r"n10_1\.png: cannot be decoded"):
        data.check()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("synsets.txt", "n01\nn02\n", "does not list the class 'n10'"),
        ("synsets.txt", "n01\nn02\nn10\nn01\n", "lists a class twice"),
        ("synsets.txt", "\n", "lists no class"),
        ("classes.json", "{", "cannot be read"),
        ("classes.json", "[]", "neither a list"),
        ("classes.json", '{"0": "n01", "2": "n02"}', "neither a list"),
        ("classes.json", "[1, 2, 3]", "neither a list"),
        ("classes.json", '[["n01", "a", "b"]]', "neither a list"),
        ("classes.json", '{"classes": [{"id": 0, "name": "n01", "color": [0, 0, 0]}]}', "neither a list"),
    ],
)
def test_lists_that_do_not_fit(root, name, text, words):
    (root / name).write_text(text)
    with pytest.raises(DatasetError, match=words):
        labelled_images_from_path(root, "val")


def test_no_such_set_and_no_such_split(root, tmp_path):
    assert has_class_folders(root, "val") and not has_class_folders(root, "train")
    with pytest.raises(DatasetError, match="no such data set"):
        labelled_images_from_path(tmp_path / "absent", "val")
    with pytest.raises(DatasetError, match="splits here: val"):
        labelled_images_from_path(root, "test")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "val").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "flat" / "val" / "a.png")
    with pytest.raises(DatasetError, match=r"no class folders with images in 'val'"):
        labelled_images_from_path(tmp_path / "flat", "val")
