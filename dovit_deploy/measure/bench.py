"""How much faster is the dynamic network than the dense one, and one engine than another, on the same frames?

    round r, frame f:   engine A: dense, dynamic   engine B: dynamic? dense?   ...
                        the order inside the pairs and the order of the engines change from turn to turn

A pair is run back to back, so that whatever else the machine does falls on both of its halves; the speed-up is the
median of the pairs' ratios. Times are those of a whole session run: the model step, without reading and painting.
Before, every frame is run once: an engine may compile what a frame needs when it first sees one of its kind. How long
these first runs took is reported apart, and is in no other figure.
A bundle without a dense form is run dynamically alone, and what compares the two is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.datasets.scenes import street_images
from dovit_deploy.errors import SourceError
from dovit_deploy.measure.bench_records import (
    BenchResult,
    FirstRuns,
    FrameMacs,
    FrameResult,
    Percentiles,
    Side,
)
from dovit_deploy.runtime.outputs import distribution
from dovit_deploy.runtime.results import Pixels, TokenReport
from dovit_deploy.runtime.settings import RunSettings, RunsOne
from dovit_deploy.runtime.transforms import whole_input
from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame

WARM_UP_RUNS = 2
"""Of each side, at least: the first run allocates, the second finds the memory there."""


@dataclass(frozen=True)
class Clock:
    """Seconds that passed, and seconds that all threads of this process computed."""

    # `process_time` counts all threads, so an engine with many threads shows what it costs the machine.
    wall: Callable[[], float] = perf_counter
    cpu: Callable[[], float] = process_time


@dataclass(frozen=True)
class Contestant:
    """A session that is timed, under the name of its engine and precision."""

    engine: str
    precision: str
    session: RunsOne


@dataclass(frozen=True)
class Timing:
    """One run in milliseconds of wall time and of processor time."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Pair:
    """One frame run both ways, back to back, and what the dynamic run did."""

    frame: int
    dense: Timing | None
    """None: the bundle has no dense form."""
    dynamic: Timing
    report: TokenReport

    @property
    def reference(self) -> Timing:
        """The run that engines are compared by: the dense one, where there is one."""
        return self.dense or self.dynamic


def benchmark(
    contestants: Sequence[Contestant],
    frames: Sequence[Pixels],
    *,
    labels: Sequence[str],
    repeat: int,
    dense: bool = True,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[BenchResult, ...]:
    """Time every contestant on every frame `repeat` times, dense and dynamic.

    Args:
        contestants: at least one; the first is what the others' engine factors refer to.
        frames: at least one, each (1, 3, H, W) at the model's size.
        labels: a name for each frame.
        repeat: rounds over all frames, at least 1.
        dense: the bundle has a dense form; without one only the dynamic run is timed.
        clock: for tests; default: this process's own.
        progress: called after every turn with the number of turns done, and of all.
    """
    clock = clock or Clock()
    runners = [_Runner(contestant, clock, dense=dense) for contestant in contestants]
    for runner in runners:
        runner.warm_up(frames)
    turns = [(number, frame) for number in range(repeat) for frame in range(len(frames))]
    for done, (number, frame) in enumerate(turns, start=1):
        # Both orders change with the frame and with the round, and not in step with each other.
        dense_first, shift = (number + frame) % 2 == 0, (number + frame) // 2 % len(runners)
        for runner in (*runners[shift:], *runners[:shift]):
            runner.run_pair(frame, frames[frame], dense_first=dense_first)
        if progress is not None:
            progress(done, len(turns))
    return tuple(_result(runner, first=runners[0].pairs, labels=labels) for runner in runners)


class _Runner:
    """Runs one contestant, and keeps what was measured."""

    def __init__(self, contestant: Contestant, clock: Clock, *, dense: bool) -> None:
        self.contestant = contestant
        self.pairs: list[Pair] = []
        self.first_ms: list[float] = []
        """Wall time of the first dynamic run of each frame."""
        self.digests: list[str] = []
        """SHA-256 of each frame's pixels."""
        self._clock = clock
        manifest = contestant.session.bundle.manifest
        # By whether the run is dense; resolved once, so that resolving is no part of what is timed.
        self._settings = {
            way: RunSettings.resolve(manifest, dense=way) for way in ((True, False) if dense else (False,))
        }

    def warm_up(self, frames: Sequence[Pixels]) -> None:
        self.digests = [digest_of(pixels) for pixels in frames]
        # Every frame: its token counts may need parts of a lazily compiled engine that no other frame needs.
        self.first_ms = [self._timed(pixels, False)[0].wall for pixels in frames]
        for way in self._settings:
            done = 0 if way else len(frames)
            for number in range(done, WARM_UP_RUNS):
                self._timed(frames[number % len(frames)], way)

    def run_pair(self, frame: int, pixels: Pixels, *, dense_first: bool) -> None:
        """Run a frame both ways, back to back."""
        # False, the dynamic run, sorts before True, the dense one.
        timed = {way: self._timed(pixels, way) for way in sorted(self._settings, reverse=dense_first)}
        dynamic, report = timed[False]
        self.pairs.append(Pair(frame, timed[True][0] if True in timed else None, dynamic, report))

    def _timed(self, pixels: Pixels, way: bool) -> tuple[Timing, TokenReport]:
        settings = self._settings[way]
        cpu, wall = self._clock.cpu(), self._clock.wall()
        _, report = self.contestant.session.run_one(pixels, settings)
        return Timing(wall=1e3 * (self._clock.wall() - wall), cpu=1e3 * (self._clock.cpu() - cpu)), report


def digest_of(pixels: Pixels) -> str:
    """SHA-256 of a frame as the model takes it: by this frames of two benchmarks are recognised."""
    return sha256(pixels.tobytes()).hexdigest()


def _result(runner: _Runner, *, first: Sequence[Pair], labels: Sequence[str]) -> BenchResult:
    contestant, pairs = runner.contestant, runner.pairs
    dense = [pair.dense for pair in pairs if pair.dense is not None]
    # A frame's tokens are the same in every round, so one report of each frame is enough.
    reports = [pair.report for pair in pairs[: len(labels)]]
    gmacs_dense = sum(report.gmacs_dense for report in reports)
    gmacs_actual = sum(report.gmacs_actual for report in reports)
    # Sums before the ratio: a frame counts by its work, as it does in the time of a whole video.
    speedup, predicted = _speedup(pairs), gmacs_dense / gmacs_actual
    return BenchResult(
        engine=contestant.engine,
        precision=contestant.precision,
        dense=_side(dense) if dense else None,
        dynamic=_side([pair.dynamic for pair in pairs]),
        speedup=speedup,
        predicted_speedup=predicted,
        realised_efficiency=None if speedup is None else speedup / predicted,
        flops_saved=1.0 - gmacs_actual / gmacs_dense,
        kept=tuple(float(np.mean(column)) for column in zip(*(report.kept for report in reports), strict=True)),
        cpu_speedup=_cpu_speedup(pairs),
        engine_factor=median_ratio([pair.reference.wall for pair in first], [pair.reference.wall for pair in pairs]),
        first_runs=_first_runs(runner.first_ms, pairs),
        per_frame=tuple(_frame_result(number, label, runner) for number, label in enumerate(labels)),
    )


def _side(timings: Sequence[Timing]) -> Side:
    return Side(
        latency_ms=percentiles([timing.wall for timing in timings]), cpu_ms=median([timing.cpu for timing in timings])
    )


def _first_runs(first_ms: Sequence[float], pairs: Sequence[Pair]) -> FirstRuns:
    found = percentiles(first_ms)
    warm = [median([pair.dynamic.wall for pair in pairs if pair.frame == frame]) for frame in range(len(first_ms))]
    beyond = max(0.0, sum(first_ms) - sum(warm))
    return FirstRuns(p50=found.p50, p99=found.p99, most=max(first_ms), compiled_ms=beyond)


def _speedup(pairs: Sequence[Pair]) -> float | None:
    """Median of dense / dynamic in wall time; None without dense runs."""
    times = [(pair.dense.wall, pair.dynamic.wall) for pair in pairs if pair.dense is not None]
    return median_ratio(*zip(*times, strict=True)) if times else None


def _cpu_speedup(pairs: Sequence[Pair]) -> float | None:
    # The processor clock of some systems ticks every 16 ms, so a short run may measure 0.
    both = [(pair.dense.cpu, pair.dynamic.cpu) for pair in pairs if pair.dense is not None]
    ticked = [(dense, dynamic) for dense, dynamic in both if dense > 0 and dynamic > 0]
    return median_ratio(*zip(*ticked, strict=True)) if ticked else None


def _frame_result(number: int, label: str, runner: _Runner) -> FrameResult:
    own = [pair for pair in runner.pairs if pair.frame == number]
    report = own[0].report
    dense = tuple(pair.dense.wall for pair in own if pair.dense is not None)
    return FrameResult(
        frame=label,
        kept=report.kept,
        flops_saved=report.flops_saved,
        speedup=_speedup(own),
        gmacs=FrameMacs(dense=report.gmacs_dense, actual=report.gmacs_actual),
        sha256=runner.digests[number],
        dense_ms=dense or None,
        dynamic_ms=tuple(pair.dynamic.wall for pair in own),
    )


# Percentiles and paired ratios: how many timings become a few numbers.


def percentiles(values: Sequence[float]) -> Percentiles:
    """Mean, median, 90th and 99th percentile of at least one value."""
    return Percentiles.model_validate(distribution(np.asarray(values, dtype=np.float64)))


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(np.median(values))


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of values that were measured side by side.

    A machine that slows down for a while slows both halves of a pair, so their ratio hardly moves; the ratio of two
    medians would.
    """
    return median([above / below for above, below in zip(numerators, denominators, strict=True)])


# The frames that a benchmark runs on: the user's, or rendered street scenes from empty road to crowd.

MOST_FRAMES = 16
"""Taken from a source: enough to see its variety, few enough to stay in memory while they are repeated."""

DENSITIES = (0.0, 0.5, 1.0)
"""Of rendered streets: how many tokens stop early depends on how much there is to see."""

SCENES_PER_DENSITY, SCENE_SEED = 3, 3
"""The same streets in every benchmark, so that results of different days can be compared."""


@dataclass(frozen=True)
class BenchFrames:
    """Frames as the model takes them, with their names, and what could not be read."""

    pixels: tuple[Pixels, ...]
    """(1, 3, H, W) float32 each."""
    labels: tuple[str, ...]
    failures: tuple[str, ...] = ()
    """A line for each frame that could not be read."""
    taken_from: int | None = None
    """How many frames the source has, where it has more than were taken."""


def rendered_frames(manifest: Manifest) -> BenchFrames:
    """Street scenes of every density at the model's size; each the start of a street of its own."""
    pixels, labels = [], []
    for density in DENSITIES:
        for number in range(SCENES_PER_DENSITY):
            (rgb,) = street_images(1, seed=SCENE_SEED + number, density=density)
            pixels.append(whole_input(rgb, manifest))
            labels.append(f"street {number + 1}, density {density:g}")
    return BenchFrames(tuple(pixels), tuple(labels))


def frames_from_source(
    source: str, manifest: Manifest, *, max_pixels: int = DEFAULT_MAX_PIXELS, recursive: bool = False
) -> BenchFrames:
    """At most `MOST_FRAMES` frames of what the user named, evenly spread, resized to the model's size.

    Raises:
        SourceError: it does not open, or no frame of it can be read.
        UsageError, PackageMissing: see `open_source`.
    """
    # Opened twice: how many frames there are decides which are taken, and a source is iterated once.
    with closing(open_source(source, max_pixels=max_pixels, recursive=recursive)) as opened:
        count = opened.count
    every = 1 if count is None else max(1, math.ceil(count / MOST_FRAMES))
    pixels, labels, failures = [], [], []
    with open_source(source, max_pixels=max_pixels, every=every, max_frames=MOST_FRAMES, recursive=recursive) as frames:
        for frame in frames:
            if isinstance(frame, FailedFrame):
                failures.append(frame.message)
                continue
            pixels.append(whole_input(frame.rgb, manifest))
            labels.append(f"{Path(frame.source).name} {frame.index}")
    if not pixels:
        raise SourceError(failures[0] if failures else f"{source}: no frame could be read")
    return BenchFrames(tuple(pixels), tuple(labels), tuple(failures), count if every > 1 else None)
