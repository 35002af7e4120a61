"""Which engine was found to be the fastest here? Remembered until something changes that the choice depends on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.record import Record
from dovit_deploy.runtime.remembered import Circumstances, RememberedEntries, RememberedFile


class Situation(Circumstances):
    """What a choice depends on: it holds for this one alone."""

    bundle: str
    """`bundle_digest`."""
    precision: str | None
    """As given; None: also chosen."""
    dense: bool
    """As given."""
    thresholds: tuple[float, ...] | None
    """As given; None: the bundle's own."""
    deadline: bool = False
    """One was given, so that a dense run is no choice."""
    audited: bool = False
    """Compared with dense, so that a dense run is no choice either."""


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


class ChoiceCache(RememberedFile[Situation, EngineChoice]):
    """The file of all choices, `choices.json`.

    Args:
        home: the folder of it; default: the user's cache.
    """

    def __init__(self, home: Path | None = None) -> None:
        lost = "the choice of an engine is not remembered"
        super().__init__("choices.json", RememberedEntries[Situation, EngineChoice], lost=lost, home=home)


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of what a bundle computes: its files and its thresholds, not its name or those of its classes."""
    files = sorted((name, entry.sha256) for name, entry in bundle.manifest.files.items())
    return hashlib.sha256(f"{files}{bundle.manifest.defaults.model_dump_json()}".encode()).hexdigest()
