"""The readers that fuzzing throws bytes at, and what counts as a finding.

An input is one byte that chooses a form (a suffix, or what is done with the bytes) and the bytes of the file. A reader
may accept it or refuse it with one of our errors in a few short lines; whatever else happens is a finding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dovit_deploy.bundle.class_files import classes_from_file
from dovit_deploy.bundle.interface import graph_interfaces
from dovit_deploy.bundle.manifest import Manifest, digest_of
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.checkpoints.configuration import configuration_from_file, configuration_from_meta
from dovit_deploy.checkpoints.own_format import config_from_text
from dovit_deploy.checkpoints.readers import readers
from dovit_deploy.datasets.class_lists import labelling_from_file
from dovit_deploy.errors import DovitError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.measure.inspect_files import onnx_contents, safetensors_contents
from dovit_deploy.runtime.outputs import ROWS, SUMMARY, foreign_in_run
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.sources.open import open_source
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.recipe import recipe_from_file, run_config
from tests.fuzz import seeds

LONGEST_MESSAGE = 1500
"""Characters of a refusal; values from the file are shortened in it, paths are not."""
MOST_LINES = 3

Form = Callable[[Path, bytes], None]
"""Reads the bytes, for which the folder is empty and its own."""


def file_called(name: str, read: Callable[[Path], object]) -> Form:
    """The bytes as a file of this name."""

    def form(folder: Path, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        read(path)

    return form


# Manifests: as they are, and signed again, since whoever changes a manifest can sign it.


def _manifest(folder: Path, data: bytes) -> None:
    del folder
    manifest = Manifest.from_json(data)
    graph_interfaces(manifest.spec)
    cost_model(manifest.spec)
    RunSettings.resolve(manifest)


def _signed_manifest(folder: Path, data: bytes) -> None:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(body, dict):
        body.pop("digest", None)
        try:
            signed = json.dumps({**body, "digest": digest_of(body)}).encode()
        except (ValueError, RecursionError):
            return
        _manifest(folder, signed)


# Configurations: files, the text in a checkpoint's meta, and the one of our own checkpoints.


def _settings(path: Path) -> None:
    configuration = configuration_from_file(path)
    for reader in readers():
        try:
            configuration.settings(reader.settings)
        except DovitError:
            # A name that one family does not know may be another's.
            continue


def _meta(folder: Path, data: bytes) -> None:
    del folder
    configuration_from_meta({"cfg": data.decode("utf-8", errors="surrogateescape")})


def _own_config(folder: Path, data: bytes) -> None:
    config_from_text(data, folder.name)


def _recipe(path: Path) -> None:
    recipe = recipe_from_file(path)
    run_config(recipe, seeds.spec(), scaling=Scaling())


# Frames: images and videos, and the files of an earlier run, which decide what may be replaced.


def _frames(path: Path) -> None:
    with open_source(str(path), max_pixels=1_000_000) as source:
        for _ in islice(source, 4):
            pass


def _earlier_run(folder: Path, data: bytes) -> None:
    summary, _, rows = data.partition(seeds.BETWEEN)
    (folder / SUMMARY).write_bytes(summary)
    (folder / ROWS).write_bytes(rows)
    foreign_in_run(folder)


@dataclass(frozen=True)
class Reader:
    """One target: its forms by name, in the order of the byte that chooses, and where it begins."""

    forms: dict[str, Form]
    seeds: Callable[[], Sequence[tuple[str, bytes]]]
    """Form and bytes of inputs that are accepted, or nearly."""

    def input_from(self, form: str, data: bytes) -> bytes:
        """The input that gives `data` to `form`."""
        return bytes([list(self.forms).index(form)]) + data

    def read(self, folder: Path, given: bytes) -> None:
        """Read an input; raises what the reader raises."""
        if given:
            forms = list(self.forms.values())
            forms[given[0] % len(forms)](folder, given[1:])


READERS = {
    "manifest": Reader({"as it is": _manifest, "signed": _signed_manifest}, seeds.manifests),
    "checkpoint": Reader(
        {
            "pth": file_called("model.pth", checkpoint_from_path),
            "safetensors": file_called("model.safetensors", checkpoint_from_path),
            "safetensors header": file_called("model.safetensors", safetensors_contents),
            "onnx": file_called("model.onnx", onnx_contents),
        },
        seeds.checkpoints,
    ),
    "config": Reader(
        {
            "py": file_called("model.py", _settings),
            "json": file_called("model.json", _settings),
            "yaml": file_called("variant.yml", _settings),
            "meta": _meta,
            "own": _own_config,
        },
        seeds.configurations,
    ),
    "recipe": Reader(
        {"toml": file_called("recipe.toml", _recipe), "yaml": file_called("recipe.yaml", _recipe)}, seeds.recipes
    ),
    "classes": Reader(
        {
            "lines": file_called("classes.txt", classes_from_file),
            "json": file_called("classes.json", classes_from_file),
            "data set": file_called("classes.json", labelling_from_file),
        },
        seeds.class_lists,
    ),
    "frames": Reader(
        {
            "image": file_called("image.png", _frames),
            "unknown": file_called("image", _frames),
            "video": file_called("clip.mp4", _frames),
            "gif": file_called("image.gif", _frames),
            "earlier run": _earlier_run,
        },
        seeds.frames,
    ),
}


def complaint(error: BaseException) -> str | None:
    """Why what a reader raised is a finding; None: it is a refusal as it should be."""
    if not isinstance(error, DovitError):
        return f"{type(error).__name__} instead of an error of ours"
    if error.exit_code == DovitError.exit_code:
        return "an error without a code of its own"
    text = str(error)
    if len(text) > LONGEST_MESSAGE:
        return f"a message of {len(text)} characters"
    if text.count("\n") >= MOST_LINES:
        return f"a message of {text.count(chr(10)) + 1} lines"
    return None
