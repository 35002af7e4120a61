"""Lists of classes as people write them, and data sets with classes of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.class_lists import labelling_from_file
from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from tests.datasets.labelled_folder import ade20k_folder, write_labelled

NAMES = ("road", "car", "sky")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", json.dumps({"classes": [{"id": number, "name": name} for number, name in enumerate(NAMES)]})),
        ("classes.json", json.dumps({"classes": list(NAMES)})),
        ("classes.json", json.dumps(list(NAMES))),
        ("names.txt", "road\n\ncar\nsky\n"),
        ("names.txt", "\ufeffroad\r\ncar \r\nsky\r\n"),
        ("names", json.dumps(list(NAMES))),
    ],
    ids=["no colours", "names", "a bare list", "text", "Windows", "JSON by content"],
)
def test_colours_and_ids_may_be_left_out(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    found = labelling_from_file(tmp_path / name)
    assert found.classes.names == NAMES
    assert len(set(found.classes.palette)) == 3
    assert found.codes.table[:3].tolist() == [0, 1, 2] and found.codes.table[3] == IGNORE


def test_given_colours_are_kept_and_only_the_others_made(tmp_path):
    entries = [{"id": 0, "name": "road", "color": [1, 2, 3]}, {"id": 1, "name": "car"}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    first, second = labelling_from_file(tmp_path / "classes.json").classes.palette
    assert first == (1, 2, 3) and second not in (first, (0, 0, 0))


def test_ids_count_from_one_where_zero_is_ignored(tmp_path):
    entries = [{"id": number, "name": str(number)} for number in range(4)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries, "ignore": 0}))
    found = labelling_from_file(tmp_path / "classes.json")
    assert found.classes.names == ("1", "2", "3")
    assert found.codes.table[:5].tolist() == [IGNORE, 0, 1, 2, IGNORE]
    assert found.codes.known[:5].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "class ids are"),
        (b'{"classes": [{"id": 0, "name": "a", "color": [1e999, 0, 0]}]}', "cannot be read"),
        (b'{"classes": [{"id": true, "name": "a"}]}', "no whole number"),
        (b'{"classes": 5}', "cannot be read"),
        (b'{"classes": [{"id": 0}]}', "'name' is missing"),
        (b'{"classes": ["a"], "ignore": 300}', "'ignore' is 300"),
        (b"[" * 100_000, "nests more than 50 levels"),
        ("road\ncar".encode("utf-16"), "UTF-16"),
        ("road\ncar".encode("utf-16-le"), "UTF-16"),
    ],
    ids=["empty", "infinite", "bool", "number", "no name", "ignore", "deep", "UTF-16", "UTF-16 without a mark"],
)
def test_what_is_no_list_is_refused_by_name(tmp_path, content, words):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(DatasetError, match=words) as caught:
        labelling_from_file(tmp_path / "names")
    assert str(caught.value).startswith(f"{tmp_path / 'names'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["a"], "ignore": "x" * 5000},
        {"classes": ["a"], "ignore": [300] * 5000},
        {"classes": [{"id": number, "name": "a"} for number in range(1, 5000)]},
        {"classes": [{"id": -(10**4000), "name": "a"}]},
        {"classes": [{"id": "x" * 5000, "name": "a"}]},
        {"classes": [{"id": 0, "name": "a", "color": [10**4000, 0, 0]}]},
        {"classes": [{"id": 0, "name": "a", "color": ["x" * 5000, 0, 0]}]},
    ],
    ids=["ignore", "list", "many ids", "id", "text as id", "colour", "text as colour"],
)
def test_values_are_shortened_where_a_message_repeats_them(tmp_path, content):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError) as caught:
        labelling_from_file(tmp_path / "classes.json")
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 400


@pytest.mark.parametrize("where", ["in the folder", "given"])
def test_own_classes_in_the_folders_of_ade20k(tmp_path, where):
    root = ade20k_folder(tmp_path / "set", values=(0, 1, 2))
    path = root / "classes.json" if where == "in the folder" else tmp_path / "own.json"
    path.write_text(json.dumps({"classes": list(NAMES)}))
    data = dataset_from_path(root, "val", classes=None if where == "in the folder" else path)
    assert data.classes.names == NAMES
    assert set(np.unique(data.label(0)).tolist()) == {0, 1, 2}


def test_a_list_that_is_given_takes_precedence(tmp_path):
    root = write_labelled(tmp_path / "set", images=1)
    (tmp_path / "other.txt").write_text("a\nb\nc\nd\ne\n")
    Image.new("L", (80, 60), 4).save(root / "labels" / "val" / "drive_000.png")
    assert dataset_from_path(root, "val", classes=tmp_path / "other.txt").classes.names == tuple("abcde")
    with pytest.raises(DatasetError, match="classes of their own"):
        dataset_from_path("rendered", "val", classes=tmp_path / "other.txt")
