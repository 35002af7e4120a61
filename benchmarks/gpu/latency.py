"""Latency of two ways to run, interleaved: percentiles of each, and the median of paired ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpu.result import Latency

FEWEST, MOST = 10, 400
"""Pairs of runs, whatever time allows."""


@dataclass(frozen=True)
class Paired:
    """Seconds of two ways to run, pair by pair."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of first / second."""
        return statistics.median(one / other for one, other in zip(self.first, self.second, strict=True))

    @property
    def difference(self) -> float:
        """Median of second - first, seconds."""
        return statistics.median(other - one for one, other in zip(self.first, self.second, strict=True))


def paired(
    first: Callable[[], object], second: Callable[[], object], *, seconds: float, finish: Callable[[], object]
) -> Paired:
    """Run both in turns for about `seconds`; each run ends when `finish` returns: the device has nothing left to do."""
    # Unmeasured: compiling, capturing and the first allocations belong to no frame.
    for step in (first, second, first, second):
        timed(step, finish)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    while len(times[0]) < FEWEST or (time.monotonic() < end and len(times[0]) < MOST):
        # The order alternates, so that what one run leaves behind (clocks, caches) affects both alike.
        for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            times[which].append(timed((first, second)[which], finish))
    return Paired(*(tuple(column) for column in times))


def timed(step: Callable[[], object], finish: Callable[[], object]) -> float:
    """Seconds from the call of `step` until the device is done."""
    finish()
    start = time.perf_counter()
    step()
    finish()
    return time.perf_counter() - start


def latency(seconds: tuple[float, ...]) -> Latency:
    """Percentiles of `seconds`, in milliseconds."""
    ordered = sorted(seconds)
    return Latency(
        p50=1e3 * statistics.median(ordered), p99=1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    )
