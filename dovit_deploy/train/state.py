"""What is in a run's folder? Its record (`train.json`), its log and the state that it resumes from.

The record holds what a run was asked for and what it made of that; a copy travels with the weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dovit_deploy import __version__
from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.errors import DatasetError, InputError, UsageError
from dovit_deploy.files import reported_writes, write_bytes, written_aside
from dovit_deploy.record import Record
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.data import TrainingData
from dovit_deploy.train.recipe import Recipe
from dovit_deploy.train.start import Given


class DataFacts(Record):
    """Which images a run learns from."""

    name: str
    images: int
    """0: rendered scenes only."""
    classes: tuple[ClassEntry, ...]
    digest: str
    """SHA-256 of the images' names, in order."""
    frequencies: tuple[float, ...]
    """Share of each class among the labelled pixels."""


class GivenFacts(Record):
    """A checkpoint that a run was given."""

    source: str
    sha256: str


class RunRecord(Record):
    """The recipe as the user wrote it, flags included, and the run that it made of the data set."""

    tool: str = f"dovit-deploy {__version__}"
    recipe: Recipe
    config: TrainConfig
    data: DataFacts
    init: GivenFacts | None = None
    """What it started from."""
    teacher: GivenFacts | None = None
    """What it learns from beside the labels."""

    def to_json(self) -> str:
        """The text of `train.json`."""
        return self.model_dump_json(indent=1) + "\n"


def entries_of(data: Dataset) -> tuple[ClassEntry, ...]:
    """Names and colours of a data set's classes."""
    pairs = zip(data.classes.names, data.classes.palette, strict=True)
    return tuple(ClassEntry(name=name, color=color) for name, color in pairs)


def names_digest(stems: Sequence[str]) -> str:
    """SHA-256 of the names of images, in their order."""
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()


def data_facts(training_data: TrainingData, frequencies: tuple[float, ...]) -> DataFacts:
    """What is remembered of the data set; of rendered scenes only what they are."""
    data = training_data.main
    stems = () if training_data.data is None else data.stems
    return DataFacts(
        name=data.name,
        images=training_data.images,
        frequencies=frequencies,
        classes=entries_of(data),
        digest=names_digest(stems),
    )


def given_facts(given: Given | None) -> GivenFacts | None:
    """What is remembered of `--init` or `--teacher`."""
    return None if given is None else GivenFacts(source=given.source, sha256=given.source_sha256)


def refuse_other_recipe(record: RunRecord, recipe: Recipe, *, whole: bool) -> None:
    """Raise UsageError if `recipe` is not the run's own.

    Args:
        record: of the run that is to go on.
        recipe: what is given now, flags included.
        whole: a file is given, so every key counts; else only those that flags set.
    """
    for name in Recipe.model_fields if whole else ("seed", "minutes", "steps"):
        given, own = getattr(recipe, name), getattr(record.recipe, name)
        if given != own and (whole or name in recipe.model_fields_set):
            key, own, given = _first_difference(name, own, given)
            raise UsageError(
                f"--resume: {key} is {_short(own)} in the run and {_short(given)} is given; "
                "a run goes on as it began: take it out, or start another run with another -o"
            )


def _first_difference(name: str, own: object, given: object) -> tuple[str, object, object]:
    """The first key at which two values differ, with both: `network.depth` rather than all of the network."""
    if isinstance(own, Record) and type(own) is type(given):
        for key in type(own).model_fields:
            if getattr(own, key) != getattr(given, key):
                return _first_difference(f"{name}.{key}", getattr(own, key), getattr(given, key))
    return name, own, given


def _short(value: object) -> str:
    text = value.model_dump_json() if isinstance(value, Record) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse_other_data(record: RunRecord, data: DataFacts) -> None:
    """Raise DatasetError if the data set is not the one that the run began with."""
    own = record.data
    if (own.images, own.digest) != (data.images, data.digest):
        raise DatasetError(
            f"--resume: {data.name} has {data.images} images to train on, the run began with {own.images} "
            f"of {own.name}{', others' if own.images == data.images else ''}; give the same data set"
        )
    if own.classes != data.classes:
        raise DatasetError(f"--resume: {data.name} has other classes than the run began with; give the same data set")


RECORD, LOG, STATE = "train.json", "log.jsonl", "state.pt"


@dataclass
class RunState:
    """Where a run stands. Random numbers are drawn from (seed, step), so no generator needs to be kept."""

    step: int
    seen: int
    """Images of the data set drawn so far."""
    scenes: int
    """Rendered scenes drawn so far."""
    seconds: float
    """Spent so far, by the run's clock."""
    model: dict[str, Any]
    average: dict[str, Any]
    optimiser: dict[str, Any]
    teacher: dict[str, Any] | None
    """The dense copy that is learnt from, once there is one; the network of `--teacher` stays in its file."""


KEPT = "what was saved before is kept, and the same command with --resume goes on"
"""What a message says where a file of a run cannot be written."""


def write_run_file(path: Path, content: bytes) -> None:
    """Replace a file of a run in one step; OutputFailed when that fails, and the old file is as it was."""
    with reported_writes(path, kept=KEPT):
        write_bytes(path, content)


def refuse_taken(path: Path) -> None:
    """Raise UsageError when something is at `path`: a run is never replaced, only gone on with."""
    if path.exists():
        raise UsageError(f"{path} exists; choose another with -o, or go on with it: --resume")


def _never(folder: Path) -> str:
    return f"{folder.name} may be a run, which is never replaced"


class RunFolder:
    """A run's folder, created with its record or opened to resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> RunFolder:
        """A new folder, which appears with its record in it; UsageError when something is there already."""
        refuse_taken(path)
        # Made aside: a folder without a readable record could be neither resumed nor replaced.
        with written_aside(path, overwrite=False, mark=_never) as folder:
            write_run_file(folder / RECORD, record.to_json().encode())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, RunRecord]:
        """A folder made by `create`; InputError when it holds no readable record."""
        try:
            record = RunRecord.model_validate_json(bytes_of_document(path / RECORD))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise InputError(f"{path}: no run to resume, {RECORD} cannot be read ({reason})") from error
        return cls(path), record

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON object to the log."""
        with reported_writes(self.path / LOG, kept=KEPT), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What is logged so far; a row that a kill cut short is left out."""
        path = self.path / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return [row for line in lines if (row := _row(line)) is not None]

    def forget_after(self, step: int) -> None:
        """Drop the log's rows of steps that will run again."""
        # Else a resumed run would log those steps twice.
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        if kept or (self.path / LOG).exists():
            write_run_file(self.path / LOG, "".join(kept).encode())

    def save(self, state: RunState) -> None:
        """Replace the state on the disk; OutputFailed when that fails, and the earlier state stays."""
        # Into memory first: a file that torch has half written could not be told from a whole one.
        content = io.BytesIO()
        torch.save(vars(state), content)
        write_run_file(self.path / STATE, content.getvalue())

    def load(self) -> RunState | None:
        """The state on the disk, None before the first was saved; InputError when it cannot be read."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return RunState(**torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, EOFError, ValueError) as error:
            # An empty file ends in an error without a word.
            reason = (str(error).splitlines() or ["it is cut short"])[0]
            raise InputError(f"{path}: cannot be read ({reason}); delete it to start the run again") from error


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
