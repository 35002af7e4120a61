"""What a section of the proof is: a name, what it measures, how long it may take, and the one outcome it has.

A section gives what it found piece by piece, so that whatever it had measured stays when it fails, hangs or is killed.
To add one, write a function like `Find` and add a line to `SECTIONS` in sections.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dovit_deploy.errors import DovitError, EngineMissing, PackageMissing, ProviderMissing
from dovit_deploy.record import Record
from gpu.result import Gpu, Outcome, Undone

LONGEST_LINE = 300
"""Characters of an error that reports repeat."""

Found = tuple[str, Record | float]
"""A field of `GpuReport`, and its value; of a field with many values, one of them."""


class NotDone(Exception):
    """This machine lacks what a section needs; the message says what."""


ABSENT = (NotDone, EngineMissing, PackageMissing, ProviderMissing, torch.OutOfMemoryError)
"""Errors that say what this machine lacks, not that anything is wrong."""


@dataclass(frozen=True)
class TimeBudget:
    """A time by which everything must be done."""

    end: float
    """By the monotonic clock."""

    @property
    def left(self) -> float:
        """Seconds that remain, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def lacks(self, what: str, seconds: float) -> Undone | None:
        """None where `seconds` remain; else what is to be reported of `what`, which is left out."""
        if self.left >= seconds:
            return None
        return Undone(what=what, why=f"{self.left:.0f} s remained, about {seconds:.0f} are needed")


@dataclass(frozen=True)
class Bench:
    """What sections run on, and until when."""

    device: torch.device
    """The GPU; the CPU where sections prove themselves on tiny models."""
    budget: TimeBudget
    say: Callable[[str], None]
    """Takes a line of progress."""
    gpu: Gpu | None = None
    """None before the first section has described it, and on the CPU."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


Find = Callable[[Bench], Iterator[Found]]
"""Measures, and gives each result at once. `NotDone` is raised where it cannot run here; anything else is a failure."""


@dataclass(frozen=True)
class ProofSection:
    """A part of the proof that fails alone.

    Args:
        name: in reports.
        find: measures; runs in a process of its own.
        seconds: the longest it may take; it is killed then.
        least: with less time than this it is not begun.
        only_gpu: there is nothing it could prove on the CPU.
        everywhere: it needs no GPU.
    """

    name: str
    find: Find
    seconds: float
    least: float = 10.0
    only_gpu: bool = False
    everywhere: bool = False


def attempted(what: str, find: Iterator[Found]) -> Iterator[Found]:
    """`find`, a part of a section: where it fails, that is a finding, and the section goes on."""
    try:
        yield from find
    except ABSENT as error:
        yield "undone", Undone(what=what, why=said(error))
    # Whatever goes wrong in one part is no reason to lose the others.
    except Exception as error:  # noqa: BLE001
        yield "broken", Outcome(name=what, ok=False, detail=error_line(error))


def error_line(error: BaseException) -> str:
    """An error in one line: its kind and what it says."""
    return f"{type(error).__name__}: {said(error)}".removesuffix(": ")


def said(error: BaseException) -> str:
    """What an error says, in one line: all of it where we wrote it, else its first line; libraries print pages."""
    lines = str(error).strip().splitlines()
    return " ".join(lines if isinstance(error, DovitError | NotDone) else lines[:1])[:LONGEST_LINE]
