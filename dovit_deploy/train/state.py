"""The run folder: configuration, log and the state that a run resumes from; each file is replaced whole."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.train.config import TrainConfig

CONFIG, LOG, STATE = "train.json", "log.jsonl", "state.pt"


@dataclass
class RunState:
    """Where a run stands. Random numbers are drawn from (seed, step), so no generator needs to be kept."""

    step: int
    seen: int
    """Samples drawn so far."""
    seconds: float
    """Processor seconds spent in steps."""
    model: dict[str, Any]
    average: dict[str, Any]
    optimiser: dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place, so that a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class RunFolder:
    """A run's folder, created empty or opened to resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunFolder:
        """A new folder; UsageError when something is there already."""
        if path.exists():
            raise UsageError(f"{path} exists; give another folder, or --resume to go on with that run")
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{path}: the folder cannot be made ({error.strerror})") from error
        write_atomically(path / CONFIG, config.model_dump_json(indent=1).encode())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, TrainConfig]:
        """A folder made by `create`; InputError when it holds no readable configuration."""
        try:
            config = TrainConfig.model_validate_json((path / CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no run to resume, {CONFIG} cannot be read ({error})") from error
        return cls(path), config

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON object to the log."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the log's rows of steps that will run again."""
        path = self.path / LOG
        if path.exists():
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
            write_atomically(path, "".join(kept).encode())

    def save(self, state: RunState) -> None:
        """Replace the state on the disk."""
        content = io.BytesIO()
        torch.save(vars(state), content)
        write_atomically(self.path / STATE, content.getvalue())

    def load(self) -> RunState | None:
        """The state on the disk, None before the first was saved; InputError when it cannot be read."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return RunState(**torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete it to start the run again") from error
