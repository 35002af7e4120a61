"""What `rivals.py` keeps of every seed, and what follows from all of them: rows, paired differences, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from report import ENGINE_NAMES

from dovit_deploy.measure.bench import median, median_ratio
from dovit_deploy.measure.intervals import Blocks, miou_drop_interval_over_seeds
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.printing import plural
from dovit_deploy.record import Record
from why_not.result import EqualLatency, PointsLost, equal_latency
from why_not.tables import SHOWN
from why_not.ways import Way

OURS = "token passing"


class BlockCounts(Record):
    """Pixels of each class in each block of recording: (blocks, K)."""

    hit: tuple[tuple[int, ...], ...]
    true: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, counts: ClassCounts, blocks: Blocks) -> BlockCounts:
        """The sums over each block of counts (n, K)."""
        of_block = np.equal(np.arange(blocks.count)[:, None], blocks.number[None, :]).astype(np.int64)
        sums = counts.weighted(of_block)
        return cls(hit=sums.hit.tolist(), true=sums.true.tolist(), predicted=sums.predicted.tolist())

    @property
    def counts(self) -> ClassCounts:
        """The same as arrays."""
        return ClassCounts(*(np.array(part, dtype=np.int64) for part in (self.hit, self.true, self.predicted)))


class WayResult(Record):
    """One way to run, with the weights of one seed."""

    name: str
    family: str
    inside: BlockCounts
    boundary: BlockCounts
    """Of the pixels along contours."""
    gmacs: tuple[float, ...]
    """Of each frame, 10^9 MACs; CPU milliseconds of the model step likewise."""
    model_ms: tuple[float, ...]

    @classmethod
    def of(cls, way: Way, blocks: Blocks) -> WayResult:
        """After all frames."""
        return cls(
            name=way.name,
            family=way.family,
            inside=BlockCounts.of(way.tally.counts, blocks),
            boundary=BlockCounts.of(way.tally.boundary_counts, blocks),
            gmacs=tuple(way.tally.gmacs),
            model_ms=tuple(way.model_ms),
        )


class SeedResult(Record):
    """All ways on one split, in one runtime, with the weights of one seed: what an interrupted run keeps."""

    seed: int
    split: str
    engine: str
    precision: str
    made_of: dict[str, str]
    """What is measured: SHA-256 of each network's weights, and the settings that decide the figures."""
    frames: int
    seconds_per_block: float | None
    ways: tuple[WayResult, ...]
    """The first is our network dense, the second at its own thresholds."""


class RivalRow(Record):
    """One way, all seeds together; metrics in percent, means over the seeds."""

    name: str
    family: str
    miou: float
    mious: tuple[float, ...]
    """Of each seed."""
    boundary_iou: float
    gmacs: float
    macs_saved: float
    """Against our own dense run; the speed-up likewise: median over all frames of all seeds, CPU time of the model."""
    speedup: float
    model_ms: float
    better_by: PointsLost | None
    """How many points token passing at its own thresholds is better, paired over seeds and blocks; None: it is that."""
    boundary_better_by: PointsLost | None


class RivalTable(Record):
    """One split in one engine and precision."""

    split: str
    engine: str
    precision: str
    seeds: tuple[int, ...]
    frames: int
    blocks: int
    rows: tuple[RivalRow, ...]
    equal_latency: tuple[EqualLatency, ...]

    @property
    def title(self) -> str:
        """Split, engine, and how much was measured."""
        seeds = f"seed{'s' * bool(self.seeds[1:])} {', '.join(map(str, self.seeds))}"
        engine = f"{ENGINE_NAMES.get(self.engine, self.engine)} {self.precision}"
        return f"`{self.split}`, {engine} ({plural(self.frames, 'frame')}, {plural(self.blocks, 'block')}, {seeds})"


def tables_of(results: Sequence[SeedResult]) -> tuple[RivalTable, ...]:
    """A table for each engine, precision and split, in the order in which they appear."""
    groups: dict[tuple[str, str, str], list[SeedResult]] = {}
    for result in results:
        groups.setdefault((result.engine, result.precision, result.split), []).append(result)
    return tuple(_table(group) for group in groups.values())


def _table(group: Sequence[SeedResult]) -> RivalTable:
    ways = list(zip(*(result.ways for result in group), strict=True))
    rows = tuple(_row(way, dense=ways[0], ours=ways[1], seconds=group[0].seconds_per_block) for way in ways)
    return RivalTable(
        split=group[0].split,
        engine=group[0].engine,
        precision=group[0].precision,
        seeds=tuple(result.seed for result in group),
        frames=group[0].frames,
        blocks=len(ways[0][0].inside.hit),
        rows=rows,
        equal_latency=equal_latency(rows),
    )


def _row(
    way: Sequence[WayResult], *, dense: Sequence[WayResult], ours: Sequence[WayResult], seconds: float | None
) -> RivalRow:
    inside, boundary = [one.inside.counts for one in way], [one.boundary.counts for one in way]
    gmacs = [value for one in way for value in one.gmacs]
    model_ms = [value for one in way for value in one.model_ms]
    blocks = Blocks(np.arange(len(way[0].inside.hit)), seconds)
    better = [
        None if way is ours else _better_by(mine, theirs, blocks)
        for mine, theirs in (
            ([one.inside.counts for one in ours], inside),
            ([one.boundary.counts for one in ours], boundary),
        )
    ]
    mious = tuple(counts.miou for counts in inside)
    return RivalRow(
        name=way[0].name,
        family=way[0].family,
        miou=sum(mious) / len(mious),
        mious=mious,
        boundary_iou=sum(counts.miou for counts in boundary) / len(boundary),
        gmacs=sum(gmacs) / len(gmacs),
        macs_saved=1 - sum(gmacs) / sum(value for one in dense for value in one.gmacs),
        speedup=median_ratio([value for one in dense for value in one.model_ms], model_ms),
        model_ms=median(model_ms),
        better_by=better[0],
        boundary_better_by=better[1],
    )


def _better_by(ours: Sequence[ClassCounts], other: Sequence[ClassCounts], blocks: Blocks) -> PointsLost:
    differences = [mine.miou - theirs.miou for mine, theirs in zip(ours, other, strict=True)]
    return PointsLost(
        points=sum(differences) / len(differences), interval=miou_drop_interval_over_seeds(ours, other, blocks)
    )


def page(report: dict[str, Any]) -> str:
    """All tables of a published result, as Markdown."""
    tables = [RivalTable.model_validate(table) for table in report["tables"]]
    origin = (
        f"{report['dataset']}, one thread, same frames, interleaved; means over seeds, speed-ups medians of pairs; "
        f"{report['machine']['cpu']}, {report['date']}; `{report['command']}`."
    )
    return "\n\n".join([*(_markdown(table) for table in tables), origin])


def _markdown(table: RivalTable) -> str:
    lines = [
        f"{table.title}:",
        "",
        "| | mIoU | boundary IoU | token passing better by (95 %) | at boundaries | GMAC | MACs saved | speed-up |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.rows:
        name = f"{OURS}, {row.name}" if row.family == OURS else row.name
        lines.append(
            f"| {name} | {row.miou:.1f} | {row.boundary_iou:.1f} | {_points(row.better_by)} "
            f"| {_points(row.boundary_better_by)} | {row.gmacs:.2f} | {row.macs_saved:.0%} | {row.speedup:.2f}x |"
        )
    return "\n".join([*lines, "", *_in_its_time(table), verdict(table)])


def _in_its_time(table: RivalTable) -> list[str]:
    """What the alternatives reach in the time of token passing, between the measured ones."""
    lines = []
    for point in table.equal_latency:
        others = {SHOWN[family]: value for family, value in point.others.items() if value is not None}
        if others:
            shown = ", ".join(f"{name} {value:.1f} ({value - point.miou:+.1f})" for name, value in others.items())
            lines.append(f"In the time of {point.name} ({point.speedup:.2f}x, {point.miou:.1f} mIoU): {shown}.")
    return lines


def verdict(table: RivalTable) -> str:
    """Whether anything that is as fast as token passing at its own thresholds is more accurate."""
    ours = table.rows[1]
    faster = [row for row in table.rows if row.family != OURS and row.speedup >= ours.speedup]
    best = max(faster, key=lambda row: row.miou, default=None)
    if best is None:
        return "Nothing else that was measured is as fast as token passing."
    assert best.better_by is not None
    if best.miou > ours.miou:
        return f"**{best.name} is as fast and better**, by {_points(_turned(best.better_by))} points."
    return f"The best that is as fast, {best.name}, is worse by {_points(best.better_by)} points."


def _turned(lost: PointsLost) -> PointsLost:
    ends = lost.interval
    return PointsLost(points=-lost.points, interval=None if ends is None else (-ends[1], -ends[0]))


def _points(lost: PointsLost | None) -> str:
    if lost is None:
        return "-"
    return f"{lost.points:.2f}" + (
        "" if lost.interval is None else f" ({lost.interval[0]:.2f} to {lost.interval[1]:.2f})"
    )
