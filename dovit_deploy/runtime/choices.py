"""Which engine was found to be the fastest here? One file in the user's cache remembers it, until something changes.

    <cache>/choices.json: what a choice depends on (machine, bundle, versions, flags) -> what was chosen, with figures

It is never trusted: what is damaged, or of another version of this package, counts as not there and is measured again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

import platformdirs
from pydantic import ValidationError

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.documents import NotData, data_from_json
from dovit_deploy.files import optional_writes, write_text
from dovit_deploy.machine import machine_facts, package_versions, this_machine
from dovit_deploy.record import Record

MOST_CHOICES = 200
"""Kept; the oldest goes first."""


class Here(Record):
    """This machine, and the versions that are installed."""

    cpu: str
    features: tuple[str, ...]
    """Of `machine.FEATURES`."""
    cores: int
    gpu: str
    """Names of the NVIDIA GPUs; empty without any."""
    versions: dict[str, str]
    """Of this package and of what computes for it."""

    @classmethod
    def now(cls) -> Self:
        """What is here."""
        machine = this_machine()
        return cls(
            cpu=machine.cpu,
            features=machine.features,
            cores=machine.cores,
            gpu=str(machine_facts().get("gpu", "")),
            versions=package_versions(),
        )


class Situation(Record):
    """What a choice depends on: it holds for this one alone."""

    here: Here
    bundle: str
    """`bundle_digest`."""
    threads: int | None
    precision: str | None
    """As given; None: also chosen."""
    dense: bool
    """As given."""
    thresholds: tuple[float, ...] | None
    """As given; None: the bundle's own."""


class EngineChoice(Record):
    """What was chosen, and why."""

    engine: str
    precision: str
    dense: bool
    """Nothing is stopped, as that is faster."""
    ratio: float
    """How many times as fast as `over` on the first frames: median of paired ratios of wall time."""
    agreement: float
    """Share of the answers, 0..1, that are those of `over` on these frames, both dynamic or both dense."""
    pays_from: int
    """Frames from which it has made up for what it takes to start; a shorter source runs in `over`."""
    over: str
    """Engine and precision that run where nothing is chosen."""
    runner_up: str
    """The fastest of the others, with its ratio; empty where there was none."""
    bundle: str
    """Name of the bundle."""
    date: str
    """UTC, to the second."""

    @property
    def name(self) -> str:
        """ "openvino bf16", "onnxruntime fp32 dense"."""
        return f"{self.engine} {self.precision}{' dense' if self.dense else ''}"


class Remembered(Record):
    """One entry of the file."""

    situation: Situation
    choice: EngineChoice


class ChoiceFile(Record):
    """The contents of `choices.json`."""

    version: Literal[1] = 1
    choices: tuple[Remembered, ...] = ()


class ChoiceCache:
    """The file of all choices.

    Args:
        home: the folder of it; default: the user's cache.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.path = (home or Path(platformdirs.user_cache_path("dovit-deploy"))) / "choices.json"

    def entries(self) -> tuple[Remembered, ...]:
        """All that is remembered, the oldest first; nothing where the file is missing or damaged."""
        return self._contents().choices

    def recall(self, situation: Situation) -> EngineChoice | None:
        """What was chosen in `situation`."""
        return next((entry.choice for entry in self.entries() if entry.situation == situation), None)

    def remember(self, situation: Situation, choice: EngineChoice) -> None:
        """Keep `choice`; where the file cannot be written, it is measured again at the next run."""
        others = [entry for entry in self.entries() if entry.situation != situation]
        self._write((*others, Remembered(situation=situation, choice=choice))[-MOST_CHOICES:])

    def forget(self, entries: tuple[Remembered, ...]) -> None:
        """Drop `entries`; without any other the file goes too, also a damaged one."""
        kept = tuple(entry for entry in self.entries() if entry not in entries)
        if kept:
            self._write(kept)
        else:
            self.path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Of the file; 0 where there is none."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def _contents(self) -> ChoiceFile:
        try:
            return ChoiceFile.model_validate(data_from_json(self.path.read_bytes()))
        except (OSError, NotData, ValidationError):
            return ChoiceFile()

    def _write(self, entries: tuple[Remembered, ...]) -> None:
        # Two runs at once: the later one wins, and what the other had found is measured again.
        with optional_writes("the choice of an engine is not remembered"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, ChoiceFile(choices=entries).model_dump_json(indent=1) + "\n")


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of what a bundle computes: its files and its thresholds, not its name or those of its classes."""
    files = sorted((name, entry.sha256) for name, entry in bundle.manifest.files.items())
    return hashlib.sha256(f"{files}{bundle.manifest.defaults.model_dump_json()}".encode()).hexdigest()


def why_outdated(situation: Situation, here: Here) -> str | None:
    """Why what was chosen in `situation` will not be recalled `here`; None: it may be."""
    there = situation.here
    if (there.cpu, there.features, there.cores, there.gpu) != (here.cpu, here.features, here.cores, here.gpu):
        return f"measured on another machine ({there.cpu}, {there.cores} cores)"
    for name in sorted(there.versions.keys() | here.versions.keys()):
        before, after = there.versions.get(name), here.versions.get(name)
        if before != after:
            return f"{name} was {before or 'missing'} and is {after or 'missing'}"
    return None
