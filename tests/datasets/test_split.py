"""Which samples a split name takes: all, those of a prefix, those of a list, and all but these."""

from __future__ import annotations

import pytest

from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.datasets.split import split_from_text
from dovit_deploy.errors import DatasetError
from tests.datasets.labelled_folder import write_labelled


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "listed.txt"
    path.write_text("drive_002\n\n  drive_000 \n")
    return path


def test_names_of_splits():
    assert all(split_from_text("val").takes(stem) for stem in ("", "a_1"))
    only, rest = split_from_text("val:a_"), split_from_text("val:-a_")
    assert (only.name, rest.name) == ("val", "val")
    for stem, taken in (("a_1", True), ("b_a_", False), ("", False)):
        assert only.takes(stem) is taken and rest.takes(stem) is not taken
    for wrong in ("", ":", ":a", "val:", "val:-", "val:@", "val:-@"):
        with pytest.raises(DatasetError, match="NAME:PREFIX"):
            split_from_text(wrong)


def test_a_list_and_all_but_it_are_the_split_in_its_order(tmp_path, listed):
    root = write_labelled(tmp_path / "set", images=4)
    only, rest = (dataset_from_path(root, f"val:{sign}@{listed}") for sign in ("", "-"))
    assert only.stems == ("drive_000", "drive_002")
    assert rest.stems == ("drive_001", "drive_003")
    assert only.sample(1).stem == "drive_002"
    assert str(listed) in only.name and "without" in rest.name


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(
    ("text", "contains"),
    [
        (None, "cannot be read"),
        ("\n\n", "lists no image"),
        ("drive_001\ndrive_01\n", "lists 'drive_01', which .* does not have"),
        ("drive_9\ndrive_8\n", "lists 'drive_8' and 1 more, which"),
    ],
    ids=["absent", "empty", "unknown", "two unknown"],
)
def test_what_is_no_list_of_the_split(tmp_path, sign, text, contains):
    root, path = write_labelled(tmp_path / "set", images=2), tmp_path / "listed.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=contains) as raised:
        dataset_from_path(root, f"val:{sign}@{path}")
    assert str(path) in str(raised.value)


def test_all_but_all_is_nothing(tmp_path):
    root, path = write_labelled(tmp_path / "set", images=2), tmp_path / "listed.txt"
    path.write_text("drive_000\ndrive_001\n")
    with pytest.raises(DatasetError, match="lists all of its 2 images"):
        dataset_from_path(root, f"val:-@{path}")
