"""The contents of `bench --json`: what was measured of each engine and precision, and of each frame."""

from __future__ import annotations

from typing import Literal

from dovit_deploy.record import Record
from dovit_deploy.runtime.latency import LatencyModel


class Percentiles(Record):
    """A distribution in four numbers; percentiles interpolate linearly between measured values."""

    mean: float
    p50: float
    p90: float
    p99: float


class Side(Record):
    """One way of running, dense or dynamic."""

    latency_ms: Percentiles
    """Of wall time."""
    cpu_ms: float
    """Median of processor time."""


class FirstRuns(Record):
    """The first dynamic run of each frame, before anything was warm: wall time in milliseconds."""

    p50: float
    p99: float
    most: float
    compiled_ms: float
    """What all of them took beyond as many warm runs: memory taken, and parts compiled at their first use."""


class FrameMacs(Record):
    """10^9 MACs of one frame."""

    dense: float
    actual: float


class FrameResult(Record):
    """One frame of the benchmark: how easy it was, and how long it took."""

    frame: str
    kept: tuple[int, ...]
    flops_saved: float
    speedup: float | None
    gmacs: FrameMacs | None = None
    """None in files of versions that did not say, likewise the next ones."""
    sha256: str = ""
    """Of its pixels as the model takes them."""
    dense_ms: tuple[float, ...] | None = None
    """Wall time in each round; None also without a dense form."""
    dynamic_ms: tuple[float, ...] = ()


class BenchResult(Record):
    """One engine at one precision; where the bundle has no dense form, what needs its time is None."""

    engine: str
    precision: str
    dense: Side | None
    dynamic: Side
    speedup: float | None
    """Median of dense / dynamic over the pairs: what the tokens give."""
    predicted_speedup: float
    """MACs of the dense network / MACs that were computed, over the same frames."""
    realised_efficiency: float | None
    """speedup / predicted_speedup."""
    flops_saved: float
    kept: tuple[float, ...]
    """Mean over the frames of the tokens that entered each stage."""
    cpu_speedup: float | None
    """As `speedup`, in processor time: steadier on a machine that others use too. None also where the clock is too
    coarse."""
    engine_factor: float
    """Median of (first engine's dense) / (this engine's dense): what the engine gives. Without dense, of dynamic."""
    first_runs: FirstRuns
    """In none of the other figures."""
    per_frame: tuple[FrameResult, ...]
    latency_model: LatencyModel | None = None
    """What the tokens of each stage take here; None of a model without gates, and on a GPU."""

    @property
    def total_factor(self) -> float:
        """Against the first engine's dense run: tokens times engine. Without dense, the engine alone."""
        return (1.0 if self.speedup is None else self.speedup) * self.engine_factor


class Change(Record):
    """How long one way of running takes now, against an earlier report."""

    engine: str
    precision: str
    run: Literal["dense", "dynamic"]
    frames: int
    """That both reports have."""
    before_ms: float
    """Median over these frames and all rounds."""
    now_ms: float
    ratio: float
    """before_ms / now_ms: above 1 it is faster now."""
    interval: tuple[float, float] | None
    """95 % of the ratio; None for too few frames."""


class BenchComparison(Record):
    """What changed since an earlier report."""

    file: str
    differences: tuple[str, ...]
    """A line for each thing beside the figures that is not what it was: machine, bundle, packages."""
    changes: tuple[Change, ...]


class BenchReport(Record):
    """The contents of `bench --json`."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    bundle: str
    frames: int
    threads: int
    repeat: int
    results: tuple[BenchResult, ...]
    comparison: BenchComparison | None = None
    """With an earlier report; None: not asked for."""
