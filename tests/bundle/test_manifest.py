"""The manifest: what must agree in it, how a classifier's crop travels, and lists of classes in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovit_deploy.bundle.class_files import classes_from_file
from dovit_deploy.bundle.manifest import (
    CentreCrop,
    ClassEntry,
    GateDefaults,
    Manifest,
    Preprocessing,
    digest_of,
    renamed,
)
from dovit_deploy.errors import InputError, ManifestInvalid
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.fakes import fake_classifier_manifest, fake_manifest

CHANGES = {
    "a class too many": {"classes": (*fake_manifest().classes, ClassEntry(name="x", color=(0, 0, 0)))},
    "no counts": {"counts": ()},
    "a gate without thresholds": {"defaults": GateDefaults(thresholds=((0.9,) * 5,))},
    "a class without a threshold": {"defaults": GateDefaults(thresholds=((0.9,) * 5, (0.9,) * 4))},
    "a threshold above 1": {"defaults": GateDefaults.model_construct(thresholds=((0.9,) * 5, (1.5,) * 5))},
    "a floor below 0": {"defaults": GateDefaults.model_construct(thresholds=((0.9,) * 5,) * 2, floor=-0.1)},
}


def test_an_agreeing_manifest_comes_back():
    manifest = fake_manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_does_not_fit_the_spec_is_refused(change):
    text = fake_manifest().model_copy(update=change).to_json()
    with pytest.raises(ManifestInvalid, match=r"classes|counts|defaults"):
        Manifest.from_json(text)


def read_again(manifest: Manifest) -> Manifest:
    return Manifest.from_json(manifest.to_json())


def test_a_segmentation_manifest_is_what_it_was():
    manifest = fake_manifest()
    assert "crop" not in json.loads(manifest.to_json())["preprocessing"]
    assert read_again(manifest) == manifest


def test_a_crop_travels():
    preprocessing = Preprocessing(
        mean=(0, 0, 0), std=(1, 1, 1), assumed=False, stride=None, crop=CentreCrop(shorter=256)
    )
    assert preprocessing.model_dump(mode="json")["crop"] == {"shorter": 256, "filter": "bicubic"}
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def test_it_follows_the_task_and_the_size():
    seen = fake_manifest().preprocessing
    spec = fake_manifest(size=(64, 64)).spec
    assert seen.for_spec(spec).crop is None

    class Classifying(VisionTransformerSpec):
        @property
        def task(self):
            return "classification"

    assert seen.for_spec(Classifying(**spec.model_dump())).crop == CentreCrop(shorter=73)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": {"shorter": 72}}, "only a classifier crops"),
        ({"crop": {"shorter": 0}}, "crop.shorter"),
        ({"crop": {"shorter": 72, "filter": "nearest"}}, "crop.filter"),
    ],
)
def test_a_crop_that_does_not_fit_is_refused(change, words):
    body = json.loads(fake_manifest().to_json())
    del body["digest"]
    body["preprocessing"].update(change)
    with pytest.raises(ManifestInvalid, match=words):
        Manifest.from_json(json.dumps({**body, "digest": digest_of(body)}))


def test_a_task_that_is_not_the_specs_is_refused():
    with pytest.raises(ManifestInvalid, match="task: classification"):
        read_again(fake_classifier_manifest())


def names_in(path: Path, text: str) -> list[str]:
    path.write_text(text, encoding="utf-8")
    return [entry.name for entry in classes_from_file(path)]


def test_one_name_a_line(tmp_path):
    assert names_in(tmp_path / "c.txt", "road\nsky \n\n") == ["road", "sky"]
    assert names_in(tmp_path / "c", "n01440764 but\nnot all\n") == ["n01440764 but", "not all"]


def test_imagenets_lists(tmp_path):
    assert names_in(tmp_path / "c.txt", "n01440764 tench, Tinca tinca\nn01443537\n") == [
        "tench, Tinca tinca",
        "n01443537",
    ]
    # Ten classes and more: "10" comes before "2" in the order of the keys' letters.
    text = ", ".join(f'"{number}": ["n{number:08}", "name {number}"]' for number in reversed(range(12)))
    assert names_in(tmp_path / "c.json", f"{{{text}}}") == [f"name {number}" for number in range(12)]
    assert names_in(tmp_path / "d.json", '{"0": "tench", "1": "goldfish"}') == ["tench", "goldfish"]


def test_json_with_and_without_colours(tmp_path):
    (tmp_path / "c.json").write_text('{"classes": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]]}')
    assert classes_from_file(tmp_path / "c.json")[1] == ClassEntry(name="sky", color=(4, 5, 6))
    assert names_in(tmp_path / "d.json", '["road", "sky"]') == ["road", "sky"]


def test_a_data_sets_own_list_is_taken_by_its_ids(tmp_path):
    listed = (
        '{"classes": [{"id": 1, "name": "sky"}, {"id": 7, "name": "void"}, {"id": 0, "name": "road"}], "ignore": 7}'
    )
    assert names_in(tmp_path / "c.json", listed) == ["road", "sky"]
    # As in the data set itself, ids count from 1 where 0 is what is ignored.
    void = '{"classes": [{"id": 2, "name": "sky"}, {"id": 0, "name": "void"}, {"id": 1, "name": "road"}], "ignore": 0}'
    assert names_in(tmp_path / "v.json", void) == ["road", "sky"]
    coloured = '[{"name": "road", "color": [1, 2, 3]}, {"name": "sky", "color": [4, 5, 6]}]'
    assert names_in(tmp_path / "d.json", coloured) == ["road", "sky"]
    assert [entry.color for entry in classes_from_file(tmp_path / "d.json")] == [(1, 2, 3), (4, 5, 6)]
    assert names_in(tmp_path / "e.json", '[["n01", "tench"], ["n02", "goldfish"]]') == ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"classes": ["a"], "palette": [[1, 2]]}'),
        ("c.json", '{"classes": [{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]}'),
        ("c.json", '[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]'),
        ("c.json", '[{"id": [], "name": "a"}]'),
        ("c.json", '[{"id": false, "name": "a"}]'),
        ("c.json", '{"classes": [{"id": 0, "name": "a"}, {"id": 2, "name": "b"}], "ignore": 0}'),
        ("c.json", '[{"name": 5}]'),
        ("c.json", '[{"name": "a", "color": [1e999, 0, 0]}]'),
        ("c.json", "{"),
        ("c.json", "[1]"),
        ("c.json", "{}"),
        ("c.json", '{"0": "a", "2": "b"}'),
        ("c.json", '{"0": 5}'),
        ("c.json", '{"0": []}'),
        ("c.txt", "\n\n"),
        ("c.txt", b"\xff\xfe\x00"),
    ],
)
def test_class_lists_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError):
        classes_from_file(tmp_path / name)
    with pytest.raises(InputError, match="no class list"):
        classes_from_file(tmp_path / "none.txt")


def test_a_manifest_gets_other_names_and_only_as_many(tmp_path):
    (tmp_path / "c.txt").write_text("\n".join("abcde"))
    manifest = fake_manifest(classes=5)
    changed = renamed(manifest, classes_from_file(tmp_path / "c.txt"))
    assert [entry.name for entry in changed.classes] == list("abcde")
    assert changed.spec == manifest.spec
    with pytest.raises(InputError, match="names 5 classes; the network has 4"):
        renamed(fake_manifest(classes=4), classes_from_file(tmp_path / "c.txt"))
