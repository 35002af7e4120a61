"""Which data set is at a path, and what is not one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dovit_deploy.datasets.open import RENDERED_NAMES, dataset_from_path, is_rendered, labelled_images_from_path
from dovit_deploy.errors import DatasetError
from tests.datasets.class_folders import write_class_folders
from tests.datasets.labelled_folder import write_labelled


@pytest.mark.parametrize("name", RENDERED_NAMES)
def test_rendered_scenes_have_no_end_and_are_the_same_again(name):
    train, val = dataset_from_path(name, "train"), dataset_from_path(name, "val")
    assert len(train) >= 10**6 > len(val) > 0
    first, again, other = train.sample(3), dataset_from_path("rendered", "train").sample(3), val.sample(3)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.label, again.label)
    assert (first.rgb != other.rgb).any()
    assert first.rgb.shape == (*first.label.shape, 3) == (360, 480, 3)
    assert first.label.max() < len(train.classes.names)


@pytest.mark.parametrize("name", RENDERED_NAMES)
def test_rendered_scenes_have_three_splits(name):
    assert len(dataset_from_path(name, "test:test_00000")) == 10
    with pytest.raises(DatasetError, match=f"'{name}' scenes: no split 'validation'; splits: train, val, test"):
        dataset_from_path(name, "validation")


@pytest.mark.parametrize("name", RENDERED_NAMES)
def test_a_folder_of_the_name_takes_precedence_over_rendered_scenes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert is_rendered(name) and not is_rendered("val")
    write_labelled(tmp_path / name, images=2)
    assert not is_rendered(name)
    assert len(dataset_from_path(name, "val")) == 2


@pytest.mark.parametrize(
    ("make", "contains"),
    [
        (lambda root: None, "no such data set"),
        (lambda root: root.write_text("x"), "is a file; a data set is a folder"),
        (lambda root: root.mkdir(), "not a data set that is known here"),
        (lambda root: (root / "images").mkdir(parents=True), "not a data set that is known here"),
    ],
    ids=["absent", "a file", "empty", "no labels"],
)
def test_what_is_no_data_set(tmp_path, make, contains):
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match=contains):
        dataset_from_path(tmp_path / "set", "val")


def test_label_maps_and_class_folders_are_distinguished(tmp_path):
    folders = write_class_folders(tmp_path / "set", folders=("n02", "n01"), images=1)
    with pytest.raises(DatasetError, match="for classifiers"):
        dataset_from_path(folders, "val")
    (folders / "classes.json").write_text(json.dumps(["n01", "n02"]))
    with pytest.raises(DatasetError, match="for classifiers"):
        dataset_from_path(folders, "val")
    assert len(labelled_images_from_path(folders, "val")) == 2
    maps = write_labelled(tmp_path / "maps", images=1)
    assert len(dataset_from_path(maps, "val")) == 1
    with pytest.raises(DatasetError, match="label maps"):
        labelled_images_from_path(maps, "val")
    for name in RENDERED_NAMES:
        with pytest.raises(DatasetError, match="pixel by pixel"):
            labelled_images_from_path(name, "val")
