"""Several computations in turns: the times of each, and the median of its paired ratios to the first.

One thread is timed by the CPU time of the process, which is what one waits for on a quiet machine; several by the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from on_cpu.result import CellEffort

FrameRun = Callable[[int], object]
"""Runs frame number i."""
BLOCK = 4
"""Images of each stream that are timed together: threads that wait for each other after every image would idle."""

SETTLED = 0.005
"""Uncertainty of a ratio below which it is known well enough: half a percent of it."""


@dataclass(frozen=True)
class RunTime:
    """Seconds of a run."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class PairTimes:
    """Runs of baseline and other, round by round, and the first runs of the other."""

    baseline: tuple[RunTime, ...]
    other: tuple[RunTime, ...]
    first: tuple[RunTime, ...]

    def ratios(self, *, wall: bool) -> list[float]:
        """Baseline / other of each round."""
        pairs = zip(self.baseline, self.other, strict=True)
        return [one.wall / two.wall if wall else one.cpu / two.cpu for one, two in pairs]


def in_turns(
    baseline: FrameRun, others: Sequence[FrameRun], *, frames: int, effort: CellEffort, wall: bool
) -> list[PairTimes]:
    """Run all of them on frames 0 to `frames` - 1 in rounds, forwards and backwards by turns.

    Each frame is run at least `effort.fewest` times; then the rounds end as soon as every ratio is known well enough,
    or `effort.seconds` are over.
    """
    for frame in range(frames):
        baseline(frame)
    # Every frame, so that nothing that one of them needs is compiled while rounds are timed.
    firsts = [tuple(timed(other, frame) for frame in range(frames)) for other in others]
    computations = (baseline, *others)
    times: list[list[RunTime]] = [[] for _ in computations]
    end = time.monotonic() + effort.seconds
    while not _enough(times, frames * effort.fewest, end, wall=wall):
        number = len(times[0])
        # Not in step with the frames: each frame is run in both orders.
        forwards = (number % frames + number // frames) % 2 == 0
        for which in range(len(computations)) if forwards else reversed(range(len(computations))):
            times[which].append(timed(computations[which], number % frames))
    return [PairTimes(tuple(times[0]), tuple(other), first) for other, first in zip(times[1:], firsts, strict=True)]


def _enough(times: Sequence[list[RunTime]], fewest: int, end: float, *, wall: bool) -> bool:
    if len(times[0]) < fewest:
        return False
    pairs = (PairTimes(tuple(times[0]), tuple(other), ()) for other in times[1:])
    return time.monotonic() >= end or all(uncertainty(each.ratios(wall=wall)) < SETTLED for each in pairs)


def uncertainty(ratios: Sequence[float]) -> float:
    """About the standard error of their median, as a share of it: of normal ones 0.93 quartile ranges over root n."""
    low, middle, high = (float(np.percentile(ratios, percent)) for percent in (25, 50, 75))
    return 0.93 * (high - low) / middle / len(ratios) ** 0.5


def timed(unit: FrameRun, frame: int) -> RunTime:
    """One run."""
    wall, cpu = time.perf_counter(), time.process_time()
    unit(frame)
    return RunTime(time.perf_counter() - wall, time.process_time() - cpu)


def in_streams(units: Sequence[FrameRun], pool: ThreadPoolExecutor) -> FrameRun:
    """All `units` at the same time, each on `BLOCK` images in a thread of its own."""

    def stream(unit: FrameRun, frame: int) -> None:
        for _ in range(BLOCK):
            unit(frame)

    def run(frame: int) -> None:
        for done in [pool.submit(stream, unit, frame) for unit in units]:
            done.result()

    return run


def milliseconds(seconds: Sequence[float], percent: float) -> float:
    """A percentile of `seconds`, which interpolates between measured values."""
    return 1e3 * float(np.percentile(seconds, percent))
