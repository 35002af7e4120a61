"""Texts from outside are read as plain data of bounded depth and extent, or refused at once in one short line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle, foreign_in_bundle
from dovit_deploy.bundle.class_files import classes_from_file
from dovit_deploy.checkpoints.configuration import configuration_from_file
from dovit_deploy.checkpoints.folders import foreign_model
from dovit_deploy.checkpoints.own_format import config_from_text, is_own_format
from dovit_deploy.documents import NotData, check_extent, data_from_json, data_from_toml, data_from_yaml
from dovit_deploy.errors import LONGEST_SHOWN, ConfigError, InputError, ManifestInvalid, shown
from dovit_deploy.train.recipe import recipe_from_contents, recipe_from_file

LISTS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n  k{n}: 1\n" for n in range(1, 12)
)
BOMBS = {
    "a.json": [
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        "1" + "0" * 5_000,
        '{"width": 1' + "0" * 5_000 + "}",
        "{",
    ],
    "a.yaml": [
        LISTS,
        MERGES,
        "[" * 5_000,
        "a: &a [*a]",
        "a: " + "9" * 5_000,
        "? [1]\n: 2",
        "a: !!python/object:os.x {}",
    ],
    "a.py": ["a0 = [0, 0]\n" + "".join(f"a{n} = [a{n - 1}, a{n - 1}]\n" for n in range(1, 60)) + "model = a59\n"],
    "a.toml": ["a = " + "[" * 5_000, "a = " + "[" * 200 + "]" * 200, "a = 1" + "0" * 5_000, "a = "],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, texts in BOMBS.items() for text in texts],
    ids=[f"{name}-{number}" for name, texts in BOMBS.items() for number in range(len(texts))],
)
def test_a_text_that_grows_is_refused_at_once(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises((ConfigError, InputError)) as refused:
        if name == "a.toml":
            recipe_from_file(path)
        else:
            configuration_from_file(path)
    assert time.monotonic() - begin < 5
    assert len(str(refused.value)) < 400 + len(str(path))
    assert "\n" not in str(refused.value)


def test_plain_data_passes() -> None:
    assert data_from_json('{"a": [1, 2.5, null, "x", true]}') == {"a": [1, 2.5, None, "x", True]}
    assert data_from_toml("a = [1, 2]") == {"a": [1, 2]}
    assert data_from_yaml("a: &a [1, 2]\nb: *a\nc: !!python/tuple [3, 4]\nd:\n  <<: {x: 1}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": [3, 4],
        "d": {"x": 1},
    }
    assert data_from_yaml("") is None


def test_a_value_within_itself_ends() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(NotData, match="levels"):
        check_extent(value)


RECIPES = [
    {"minutes": float("inf")},
    {"minutes": float("nan")},
    {"steps": 10**5000},
    {"network": {"width": 10**9}},
    {"network": {"depth": 10**9}},
    {"network": {"size": [10**9, 10**9]}},
    {"network": {"gates": [10**30]}},
    {"phases": [{"until": 1, "batch": 10**12}]},
    {"augmentation": {"scale": [1, float("inf")]}},
    {"learning_rate": [[[1]]]},
    {"workers": "x" * 10_000},
    {"x" * 10_000: 1},
    {"seed": 10**400},
    [1, 2],
    "text",
    5,
]


@pytest.mark.parametrize("contents", RECIPES, ids=range(len(RECIPES)))
def test_recipes_of_odd_values(contents: object) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe_from_contents(contents, "recipe.toml")
    assert len(str(refused.value)) < 700
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"classes": ["a"], "palette": [[1e999, 0, 0]]}',
        '{"classes": ["a"], "palette": [[NaN, 0, 0]]}',
        '{"classes": ["a"], "palette": [[256, 0, 0]]}',
        '{"classes": ["a"], "palette": [[-1, 0, 0]]}',
        '["' + "x" * 5_000 + '"]',
        '["\\ud800"]',
        "[" * 100_000,
    ],
    ids=range(7),
)
def test_class_lists_of_odd_values(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError) as refused:
        classes_from_file(tmp_path / "c.json")
    assert len(str(refused.value)) < 600 + len(str(tmp_path))


def test_a_checkpoints_configuration_of_odd_values() -> None:
    for text in (
        "[" * 100_000,
        '{"version": 1' + "0" * 5_000 + "}",
        '{"version": 1, "spec": {"architecture": "x"}}',
        "5",
    ):
        with pytest.raises(ConfigError) as refused:
            config_from_text(text, "run")
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**5000, [[[["x" * 999] * 99] * 99] * 99], {"a": "b" * 999}, object()], ids=range(5)
)
def test_a_message_repeats_little_of_a_value(value: object) -> None:
    assert len(shown(value)) <= LONGEST_SHOWN
    assert len(shown(value, quoted=True)) <= LONGEST_SHOWN


def test_no_more_of_a_file_is_read_than_a_document_can_be(tmp_path: Path) -> None:
    for name in ("manifest.json", "config.json", "names.txt", "recipe.toml"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"{")
            file.seek(2**36)
            # Sparse: nothing is on the disk, and whoever reads it whole needs 64 GB.
            file.truncate()
    start = time.monotonic()
    with pytest.raises(ManifestInvalid, match="longer than"):
        Bundle.open(tmp_path)
    with pytest.raises(InputError):
        configuration_from_file(tmp_path / "config.json")
    with pytest.raises(InputError):
        classes_from_file(tmp_path / "names.txt")
    with pytest.raises(InputError):
        recipe_from_file(tmp_path / "recipe.toml")
    assert foreign_in_bundle(tmp_path) is not None
    assert foreign_model(tmp_path) is None
    assert not is_own_format(tmp_path)
    assert time.monotonic() - start < 5
