"""Lists of classes: every format that is read, what is refused, and generated colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovit_deploy.bundle.manifest import ClassEntry, classes_from_file, generated_palette, renamed
from dovit_deploy.errors import InputError
from tests.fakes import fake_manifest


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"classes": ["a"], "palette": [[1, 2]]}'),
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


def test_generated_palette_is_stable_and_distinct() -> None:
    assert generated_palette(150)[:19] == generated_palette(19)
    assert len(set(generated_palette(150))) == 150
