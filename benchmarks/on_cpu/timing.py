"""Two computations in turns: percentiles of each, and the median of paired ratios.

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


@dataclass(frozen=True)
class RunTime:
    """Seconds of a run."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class PairTimes:
    """Runs of baseline and other, pair by pair, and the first runs of the other."""

    baseline: tuple[RunTime, ...]
    other: tuple[RunTime, ...]
    first: tuple[RunTime, ...]

    def ratios(self, *, wall: bool) -> list[float]:
        """Baseline / other of each pair."""
        pairs = zip(self.baseline, self.other, strict=True)
        return [one.wall / two.wall if wall else one.cpu / two.cpu for one, two in pairs]


def paired(baseline: FrameRun, other: FrameRun, *, frames: int, effort: CellEffort) -> PairTimes:
    """Run both on frames 0 to `frames` - 1 in turns, the order alternating, for about `effort.seconds`."""
    for frame in range(frames):
        baseline(frame)
    # Every frame, so that nothing that one of them needs is compiled while pairs are timed.
    first = tuple(timed(other, frame) for frame in range(frames))
    times: tuple[list[RunTime], list[RunTime]] = ([], [])
    end = time.monotonic() + effort.seconds
    while len(times[0]) < max(effort.fewest, frames) or time.monotonic() < end:
        number = len(times[0])
        # Not in step with the frames: each frame is run in both orders.
        order = (0, 1) if (number % frames + number // frames) % 2 == 0 else (1, 0)
        for which in order:
            times[which].append(timed((baseline, other)[which], number % frames))
    return PairTimes(tuple(times[0]), tuple(times[1]), first)


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
