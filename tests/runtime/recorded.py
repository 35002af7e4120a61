"""A stand-in for a machine: sessions that answer at once and take, by a clock of their own, what was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from dovit_deploy.runtime.contest import STANDARD, Candidate
from dovit_deploy.runtime.settings import RunSettings

PIXELS = np.zeros((1, 3, 4, 4), dtype=np.float32)
DYNAMIC = RunSettings(np.ones((1, 3), dtype=np.float32), np.float32(0))
DENSE = RunSettings(np.ones((1, 3), dtype=np.float32), np.float32(0), None, True)


@dataclass
class Recorded:
    """One engine: milliseconds of a run, dynamic and dense, and of its start; how many of 100 answers are others."""

    dynamic: float
    dense: float = 150
    start: float = 0.0
    wrong: int = 0
    fails: Exception | None = None


@dataclass
class Machine:
    """All engines by candidate, and the time that has passed."""

    engines: dict[Candidate, Recorded]
    seconds: float = 0.0
    open: list[Candidate] = field(default_factory=list)
    most_open: int = 0
    remarks: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.seconds

    def opened(self, candidate: Candidate) -> RecordedSession:
        recorded = self.engines[candidate]
        self.seconds += recorded.start / 1e3
        if recorded.fails is not None:
            raise recorded.fails
        self.open.append(candidate)
        self.most_open = max(self.most_open, len(self.open))
        return RecordedSession(self, candidate, recorded)


class RecordedSession:
    """What a contest needs of a session."""

    bundle = SimpleNamespace(manifest=SimpleNamespace(spec=SimpleNamespace(gates=(1,), extra_tokens=1)))

    def __init__(self, machine: Machine, candidate: Candidate, recorded: Recorded) -> None:
        self._machine, self._candidate, self._recorded = machine, candidate, recorded

    def run_one(self, pixels, settings: RunSettings):
        self._machine.seconds += (self._recorded.dense if settings.dense else self._recorded.dynamic) / 1e3
        logits = np.zeros((1, 2, 10, 10), dtype=np.float32)
        logits[0, 1].ravel()[: self._recorded.wrong] = 1
        return logits, None

    def close(self) -> None:
        self._machine.open.remove(self._candidate)


def standard(dynamic: float, dense: float = 150) -> dict[Candidate, Recorded]:
    return {STANDARD: Recorded(dynamic, dense)}
