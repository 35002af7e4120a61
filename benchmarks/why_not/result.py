"""The result of `compare.py` as data: what was measured of every way on every split, ready for JSON and for tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from dovit_deploy.bundle.interface import FP32
from dovit_deploy.measure.bench import median, median_ratio
from dovit_deploy.measure.intervals import Blocks, miou_drop_interval
from dovit_deploy.measure.report import iou_by_name
from dovit_deploy.record import Record
from why_not.ways import Runtime, Way

FAMILIES = {
    "smaller": ("dense",),
    "dense-trained smaller": ("dense-trained",),
    "shallower": ("dense-trained",),
    "merging": ("dense-trained", "dense"),
}
"""The alternatives, and whose dense run is the first point of each; merging takes a dense-trained model if given."""


class PointsLost(Record):
    """Points of mIoU lost against a dense run on the same frames."""

    points: float
    interval: tuple[float, float] | None
    """95 %, paired block bootstrap; None for sets of one block."""


class WayRow(Record):
    """One way on one split; metrics in percent."""

    name: str
    family: str
    miou: float
    boundary_iou: float
    pixel_accuracy: float
    drop: PointsLost
    """Against the bundle's own dense run."""
    drop_from_dense_trained: PointsLost | None
    """Against the dense-trained model; None where none was given."""
    gmacs: float
    """10^9 MACs, mean over the frames."""
    macs_saved: float
    """Against the bundle's own dense run."""
    speedup: float
    """Median over the frames of dense / this, CPU time of the model step."""
    wall_speedup: float
    """Median over the frames of dense / this, wall time of the model step."""
    model_ms: float
    """CPU time, median over the frames."""


class EqualLatency(Record):
    """An operating point of token passing beside what each alternative reaches in the time it takes."""

    name: str
    speedup: float
    miou: float
    others: dict[str, float | None]
    """mIoU by family, interpolated; None outside of what was measured."""


class ClassRow(Record):
    """One class at the bundle's own thresholds: IoU in percent, None where it neither occurs nor is predicted."""

    name: str
    dense: float | None
    dynamic: float | None


class FrameSavings(Record):
    """One frame at the bundle's own thresholds."""

    stem: str
    kept: tuple[int, ...]
    """Tokens entering each stage."""
    macs_saved: float


class SplitReport(Record):
    """Everything of one split."""

    split: str
    engine: str = "onnxruntime"
    """As `--engine` calls it; results from before there was a choice do not say, likewise the precision."""
    precision: str = FP32
    frames: int
    blocks: int
    """Of the bootstrap."""
    rows: tuple[WayRow, ...]
    equal_latency: tuple[EqualLatency, ...]
    classes: tuple[ClassRow, ...]
    cheapest: FrameSavings
    dearest: FrameSavings


class Report(Record):
    """The contents of the JSON file."""

    command: str
    date: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    dataset: str
    every: int
    splits: tuple[SplitReport, ...]


def split_report(
    split: str, stems: Sequence[str], ways: Sequence[Way], names: Sequence[str], blocks: Blocks, runtime: Runtime
) -> SplitReport:
    """What was measured on one split.

    Args:
        stems: of the frames, in their order.
        ways: after all frames; the first is dense, the second token passing at the bundle's own thresholds.
        names: of the classes.
        blocks: of the frames.
        runtime: what all ways ran in.
    """
    trained = next((way for way in ways if way.family == "dense-trained"), None)
    rows = tuple(_row(way, ways[0], trained, blocks) for way in ways)
    frames = frame_rows(stems, ways[0], ways[1])
    return SplitReport(
        split=split,
        engine=runtime.engine,
        precision=runtime.precision,
        frames=len(stems),
        blocks=blocks.count,
        rows=rows,
        equal_latency=equal_latency(rows),
        classes=_class_rows(ways[0], ways[1], names),
        cheapest=max(frames, key=lambda frame: frame.macs_saved),
        dearest=min(frames, key=lambda frame: frame.macs_saved),
    )


def _row(way: Way, dense: Way, trained: Way | None, blocks: Blocks) -> WayRow:
    return WayRow(
        name=way.name,
        family=way.family,
        miou=way.tally.counts.miou,
        boundary_iou=way.tally.boundary_counts.miou,
        pixel_accuracy=way.tally.counts.pixel_accuracy,
        drop=_drop(dense, way, blocks),
        drop_from_dense_trained=None if trained is None else _drop(trained, way, blocks),
        gmacs=sum(way.tally.gmacs) / len(way.tally.gmacs),
        macs_saved=1 - sum(way.tally.gmacs) / sum(dense.tally.gmacs),
        speedup=median_ratio(dense.model_ms, way.model_ms),
        wall_speedup=median_ratio(dense.wall_ms, way.wall_ms),
        model_ms=median(way.model_ms),
    )


def _drop(before: Way, after: Way, blocks: Blocks) -> PointsLost:
    first, second = before.tally.counts, after.tally.counts
    return PointsLost(points=first.miou - second.miou, interval=miou_drop_interval(first, second, blocks))


class TimedWay(Protocol):
    """What is asked of a way that is compared at equal latency."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def miou(self) -> float: ...
    @property
    def speedup(self) -> float: ...


class Point(NamedTuple):
    """A measured way of an alternative."""

    latency: float
    """Of the model step, as a multiple of the dense run's."""
    miou: float
    """Percent."""


def equal_latency(rows: Sequence[TimedWay]) -> tuple[EqualLatency, ...]:
    """Each operating point of token passing beside the alternatives at its latency; latency is 1 / speed-up."""
    fronts = {family: _points(rows, family, first) for family, first in FAMILIES.items()}
    return tuple(
        EqualLatency(
            name=row.name,
            speedup=row.speedup,
            miou=row.miou,
            others={family: at_latency(points, 1 / row.speedup) for family, points in fronts.items()},
        )
        for row in rows
        if row.family == "token passing"
    )


def _points(rows: Sequence[TimedWay], family: str, first: tuple[str, ...]) -> list[Point]:
    present = {row.family for row in rows}
    if family not in present:
        return []
    # The dense run at full size is where each alternative starts.
    taken = {family, *[name for name in first if name in present][:1]}
    return [Point(1 / row.speedup, row.miou) for row in rows if row.family in taken]


def at_latency(points: Sequence[Point], latency: float) -> float | None:
    """mIoU at `latency`, linear between the two nearest `points` around it; None outside of all of them."""
    ordered = sorted(points)
    for point in ordered:
        if point.latency == latency:
            return point.miou
    for left, right in itertools.pairwise(ordered):
        # Strictly between: equal latencies were answered above.
        if left.latency < latency < right.latency:
            share = (latency - left.latency) / (right.latency - left.latency)
            return left.miou + share * (right.miou - left.miou)
    return None


def frame_rows(stems: Sequence[str], dense: Way, dynamic: Way) -> list[FrameSavings]:
    """What token passing saved on each frame."""
    return [
        FrameSavings(stem=stem, kept=kept, macs_saved=1 - actual / full)
        for stem, kept, actual, full in zip(
            stems, dynamic.tally.kept, dynamic.tally.gmacs, dense.tally.gmacs, strict=True
        )
    ]


def _class_rows(dense: Way, dynamic: Way, names: Sequence[str]) -> tuple[ClassRow, ...]:
    before, after = iou_by_name(dense.tally.counts, names), iou_by_name(dynamic.tally.counts, names)
    return tuple(ClassRow(name=name, dense=before[name], dynamic=after[name]) for name in before)


def figures_of(dataset: str, every: int, splits: Sequence[SplitReport]) -> dict[str, Any]:
    """What `report.publish` puts beside command, date, machine and versions."""
    return {"dataset": dataset, "every": every, "splits": [split.model_dump(mode="json") for split in splits]}
