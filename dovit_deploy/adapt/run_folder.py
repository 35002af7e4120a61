"""What is kept of a distillation until its bundle is written? A folder `NAME.distilling` beside the bundle.

    adapt.json           what it learns from, and how; written first
    fitted.safetensors   gates and lenses before the first step, once they are fitted
    log.jsonl, state.pt  as of a training run

A run that was killed at any moment goes on from it. It is bound to what it began with: another network, other images
or other settings are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from dovit_deploy import __version__
from dovit_deploy.adapt.report import GateEntry
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.claims import name_that_fits, remove
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.files import first_foreign, refuse_existing, reported_writes, written_aside
from dovit_deploy.record import Record
from dovit_deploy.train.config import TrainConfig
from dovit_deploy.train.state import LOG, STATE, RunFolder, write_run_file

SUFFIX = ".distilling"
RECORD, FITTED = "adapt.json", "fitted.safetensors"


class DistilRecord(Record):
    """What a distillation began with."""

    tool: str = f"dovit-deploy {__version__}"
    network: str
    """SHA-256 of the dense network: its spec, weights, mean and std."""
    images: int
    digest: str
    """SHA-256 of the pixels of the images that it learns from, in their order."""
    config: TrainConfig


def folder_of(target: Path) -> Path:
    """Where what is on the way to the bundle `target` is kept."""
    return target.with_name(name_that_fits(target.stem, SUFFIX))


def network_digest(dense: Checkpoint) -> str:
    """SHA-256 of a network, with how it takes images."""
    digest = hashlib.sha256(dense.spec.model_dump_json().encode())
    digest.update(dense.preprocessing.model_dump_json().encode())
    for name in sorted(dense.state):
        digest.update(name.encode())
        digest.update(dense.state[name].detach().contiguous().float().numpy().data)
    return digest.hexdigest()


def foreign_in_run(folder: Path) -> str | None:
    """Why `folder` is no run of ours that may be removed or replaced; None: it is one."""
    if not (folder / RECORD).is_file():
        return f"it has no {RECORD}"
    expected = (RECORD, FITTED, LOG, STATE)
    # What was being written when a run was killed begins with the name that it was to get.
    return first_foreign(folder, lambda path: path.startswith(expected))


class DistilFolder:
    """A distillation's folder, created with its record or opened to go on."""

    def __init__(self, path: Path, record: DistilRecord) -> None:
        self.path, self.record, self.run = path, record, RunFolder(path)

    @classmethod
    def create(cls, path: Path, record: DistilRecord, *, overwrite: bool) -> DistilFolder:
        """A new folder, which appears with its record in it.

        Raises:
            UsageError: something is there and may not be replaced.
            OutputFailed: the disk refuses it.
        """
        refuse_begun(path, overwrite=overwrite)
        with written_aside(path, overwrite=overwrite, mark=foreign_in_run) as folder:
            write_run_file(folder / RECORD, (record.model_dump_json(indent=1) + "\n").encode())
        return cls(path, record)

    @classmethod
    def open(cls, path: Path) -> DistilFolder:
        """A folder made by `create`; InputError when it holds no readable record."""
        try:
            record = DistilRecord.model_validate_json(bytes_of_document(path / RECORD))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise InputError(
                f"{path}: nothing to go on with, {RECORD} cannot be read ({reason}); remove the folder, and begin again"
            ) from error
        return cls(path, record)

    def keep_fitted(self, parts: Mapping[str, Tensor], fits: tuple[GateEntry, ...]) -> None:
        """Put what was fitted before the first step on the disk."""
        said = {"gates": json.dumps([fit.model_dump() for fit in fits])}
        write_run_file(self.path / FITTED, safetensors.torch.save(dict(parts), said))

    def fitted(self) -> tuple[dict[str, Tensor], tuple[GateEntry, ...]] | None:
        """What `keep_fitted` was given; None before that; InputError where it cannot be read."""
        path = self.path / FITTED
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                entries: list[dict[str, Any]] = json.loads(file.metadata()["gates"])
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            return parts, tuple(GateEntry.model_validate(entry) for entry in entries)
        except (OSError, ValueError, KeyError, TypeError, ValidationError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete it, and it is fitted again") from error

    def remove(self) -> None:
        """The bundle is written: nothing of this is needed any more."""
        if foreign_in_run(self.path) is None:
            with reported_writes(self.path):
                remove(self.path)


def refuse_begun(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError where a distillation was begun at `path` and is not to be begun again."""
    if (path / RECORD).is_file() and not overwrite:
        raise UsageError(
            f"{path} holds a run that was not finished; go on with it: --resume, or begin again: --overwrite"
        )
    refuse_existing(path, overwrite=overwrite, mark=foreign_in_run)
