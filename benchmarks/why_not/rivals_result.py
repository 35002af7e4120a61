"""What follows from the cells of `rivals.py`: rows, paired differences, what is as fast, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from report import ENGINE_NAMES

from dovit_deploy.measure.bench import median, median_ratio
from dovit_deploy.measure.intervals import Blocks, miou_drop_interval_over_seeds
from dovit_deploy.printing import plural
from dovit_deploy.record import Record
from why_not.cells import AccuracyCell, LatencyCell
from why_not.contenders import FAMILIES, OURS, Contender
from why_not.result import EqualLatency, PointsLost, equal_latency
from why_not.tables import SHOWN
from why_not.ways import Runtime, merging_name

STATIC = ("dense-trained", "dense-trained smaller", "shallower")
"""Families of networks that were trained to run whole."""

PARTS = ("inside", "boundary")
"""What is counted of an answer: all pixels, and those along contours."""

ALLOWED, ALLOWED_AT_BOUNDARIES = 0.8, 1.5
"""Points that token passing aims to stay below against the best of them, by the upper end of its interval."""


@dataclass(frozen=True)
class JudgedContender:
    """One contender of one seed in one table."""

    contender: Contender
    accuracy: AccuracyCell
    latency: LatencyCell | None
    """None: not timed, or timed with another seed."""


OfSeeds = Mapping[int, JudgedContender]
"""One row's, by seed."""


class RivalRow(Record):
    """One way, all seeds that are there together; metrics in percent, means over them."""

    name: str
    family: str
    seeds: tuple[int, ...]
    miou: float
    mious: tuple[float, ...]
    """Of each seed."""
    boundary_iou: float
    gmacs: float
    macs_saved: float
    """Against our own dense run of the same seeds."""
    speedup: float | None
    """Over our own dense run: median over all pairs of runs on one image, CPU time of the model; None: not timed."""
    model_ms: float | None
    better_by: PointsLost | None
    """How many points token passing at its own thresholds is better, paired over the seeds of both and over blocks;
    None: it is that."""
    boundary_better_by: PointsLost | None


class TimedRow(RivalRow):
    """A row that was timed, as it is compared at equal latency."""

    speedup: float


class RivalTable(Record):
    """One split in one engine and precision."""

    split: str
    engine: str
    precision: str
    judged_in: str
    """The engine whose answers are judged."""
    seeds: tuple[int, ...]
    frames: int
    blocks: int
    rows: tuple[RivalRow, ...]
    equal_latency: tuple[EqualLatency, ...]
    missing: tuple[str, ...]
    """Runs that were asked for and are not there."""
    unmeasured: tuple[str, ...]
    """What is there and not judged yet."""

    @property
    def title(self) -> str:
        """Split, engine, and how much was measured."""
        seeds = seeds_text(self.seeds)
        engine = f"{ENGINE_NAMES.get(self.engine, self.engine)} {self.precision}"
        return f"`{self.split}`, {engine} ({plural(self.frames, 'frame')}, {plural(self.blocks, 'block')}, {seeds})"

    def row(self, family: str) -> RivalRow:
        """The first of a family."""
        return next(row for row in self.rows if row.family == family)


def table_of(
    judged: Sequence[JudgedContender],
    *,
    split: str,
    runtime: Runtime,
    judged_in: str,
    missing: Sequence[str],
    unmeasured: Sequence[str],
) -> RivalTable:
    """The table of one split and runtime.

    Args:
        judged: of all seeds, each seed's in the order of rows.
        split: of the data set.
        runtime: of the latencies.
        judged_in: the engine of the answers.
        missing: runs that are not there.
        unmeasured: what is there and not judged yet.
    """
    groups: dict[tuple[str, str], dict[int, JudgedContender]] = {}
    for one in judged:
        groups.setdefault((one.contender.family, one.contender.name), {})[one.contender.seed] = one
    dense = next(group for (family, _), group in groups.items() if family == "dense")
    ours = next(group for (family, _), group in groups.items() if family == OURS)
    rows = _in_order([_row(group, dense=dense, ours=ours, precision=runtime.precision) for group in groups.values()])
    rows = _with_dense_timed(rows, judged)
    first = next(iter(dense.values())).accuracy
    timed = [TimedRow.model_validate(row.model_dump()) for row in rows if row.speedup is not None]
    return RivalTable(
        split=split,
        engine=runtime.engine,
        precision=runtime.precision,
        judged_in=judged_in,
        seeds=tuple(dense),
        frames=len(first.gmacs),
        blocks=len(first.inside.hit),
        rows=rows,
        equal_latency=equal_latency(timed),
        missing=tuple(missing),
        unmeasured=tuple(unmeasured),
    )


def _in_order(rows: Sequence[RivalRow]) -> tuple[RivalRow, ...]:
    """By family; a run that only a later seed has stands where the others of its kind do."""
    return tuple(sorted(rows, key=lambda row: (FAMILIES.index(row.family), -row.gmacs)))


def _row(
    group: Mapping[int, JudgedContender],
    *,
    dense: Mapping[int, JudgedContender],
    ours: Mapping[int, JudgedContender],
    precision: str,
) -> RivalRow:
    contender = next(iter(group.values())).contender
    inside, boundary = ([getattr(one.accuracy, part).counts for one in group.values()] for part in PARTS)
    gmacs = [value for one in group.values() for value in one.accuracy.gmacs]
    whole = [value for seed in group for value in dense[seed].accuracy.gmacs]
    timed = [one.latency for one in group.values() if one.latency is not None]
    own_ms, dense_ms = [ms for one in timed for ms in one.own_ms], [ms for one in timed for ms in one.dense_ms]
    mious = tuple(counts.miou for counts in inside)
    better = [None if group is ours else _better_by(ours, group, part) for part in PARTS]
    return RivalRow(
        name=merging_name(contender.merge, precision) if contender.merge else contender.name,
        family=contender.family,
        seeds=tuple(group),
        miou=sum(mious) / len(mious),
        mious=mious,
        boundary_iou=sum(counts.miou for counts in boundary) / len(boundary),
        gmacs=sum(gmacs) / len(gmacs),
        macs_saved=1 - sum(gmacs) / sum(whole),
        speedup=median_ratio(dense_ms, own_ms) if timed else None,
        model_ms=median(own_ms) if timed else None,
        better_by=better[0],
        boundary_better_by=better[1],
    )


def _with_dense_timed(rows: Sequence[RivalRow], judged: Sequence[JudgedContender]) -> tuple[RivalRow, ...]:
    """Our own dense run has no cell of its own: it is the other half of every pair."""
    times = [ms for one in judged if one.latency is not None for ms in one.latency.dense_ms]
    if not times:
        return tuple(rows)
    given = {"speedup": 1.0, "model_ms": median(times)}
    return tuple(row.model_copy(update=given) if row.family == "dense" else row for row in rows)


def _better_by(ours: OfSeeds, other: OfSeeds, part: str) -> PointsLost:
    """Over the seeds that both have; the other has none that ours has not."""
    pairs = [(getattr(ours[seed].accuracy, part), getattr(one.accuracy, part)) for seed, one in other.items()]
    mine, theirs = [one.counts for one, _ in pairs], [one.counts for _, one in pairs]
    first = next(iter(ours.values())).accuracy
    blocks = Blocks(np.arange(len(first.inside.hit)), first.seconds_per_block)
    differences = [one.miou - two.miou for one, two in zip(mine, theirs, strict=True)]
    return PointsLost(
        points=sum(differences) / len(differences), interval=miou_drop_interval_over_seeds(mine, theirs, blocks)
    )


def page(report: dict[str, Any]) -> str:
    """All tables of a published result, as Markdown."""
    tables = [RivalTable.model_validate(table) for table in report["tables"]]
    every = "".join(f"; every {number}th image of `{split}`" for split, number in report["every"].items())
    origin = (
        f"{report['dataset']}{every}; means over seeds; speed-ups: medians of pairs of runs, {report['timed']} images, "
        f"one thread; {report['machine']['cpu']}, {report['date']}; `{report['command']}`."
    )
    return "\n\n".join([*(_markdown(table) for table in tables), *_sizes(report), origin])


def _sizes(report: dict[str, Any]) -> list[str]:
    """Where all ran at another input than they were trained at: a line that says so."""
    if "sizes" not in report:
        return []
    run, trained = ("x".join(map(str, report["sizes"][key])) for key in ("run", "trained"))
    return [f"Run at {run} (height x width) where no other size is named, trained at {trained}."]


def _markdown(table: RivalTable) -> str:
    lines = [
        f"{table.title}:",
        "",
        "| | mIoU | boundary IoU | token passing better by (95 %) | at boundaries | GMAC | MACs saved | speed-up |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.rows:
        name = f"{OURS}, {row.name}" if row.family == OURS else row.name
        if row.seeds != table.seeds:
            name += f" ({seeds_text(row.seeds)} alone)"
        speedup = "-" if row.speedup is None else f"{row.speedup:.2f}x"
        lines.append(
            f"| {name} | {row.miou:.1f} | {row.boundary_iou:.1f} | {_points(row.better_by)} "
            f"| {_points(row.boundary_better_by)} | {row.gmacs:.2f} | {row.macs_saved:.0%} | {speedup} |"
        )
    notes = [f"**Not trained yet, and missing here: {_by_run(table.missing)}.**"] if table.missing else []
    if table.unmeasured:
        notes.append(f"**Not measured yet: {', '.join(table.unmeasured)}.**")
    if table.judged_in != table.engine:
        notes.append(f"Accuracy as judged in {ENGINE_NAMES.get(table.judged_in, table.judged_in)} {table.precision}.")
    return "\n".join([*lines, "", *_in_its_time(table), verdict(table), *against_best(table), *notes])


def seeds_text(seeds: Sequence[int]) -> str:
    """ "seed 1", "seeds 0, 2"."""
    return f"seed{'s' * bool(seeds[1:])} {', '.join(map(str, seeds))}"


def _by_run(missing: Sequence[str]) -> str:
    """NAME-seedN and others, with the seeds of each NAME together."""
    runs: dict[str, list[int]] = {}
    for each in missing:
        name, _, seed = each.rpartition("-seed")
        runs.setdefault(name, []).append(int(seed))
    return "; ".join(f"{name}, {seeds_text(seeds)}" for name, seeds in runs.items())


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
    """Whether anything that is as fast as token passing at its own thresholds is more accurate.

    Over the seeds that both have: means over different seeds are not compared.
    """
    ours = table.row(OURS)
    if ours.speedup is None:
        return "Nothing was timed yet."
    faster = [row for row in table.rows if row.better_by is not None and (row.speedup or 0.0) >= ours.speedup]
    best = min((row for row in faster if row.family != "curve"), key=_points_better, default=None)
    if best is None:
        return "Nothing else that was measured is as fast as token passing."
    if _points_better(best) < 0:
        return f"**{best.name} is as fast and better**, by {_points(_turned(best.better_by))} points."
    return f"The best that is as fast, {best.name}, is worse by {_points(best.better_by)} points."


def against_best(table: RivalTable) -> list[str]:
    """Token passing against the best network that was trained to run whole, however slow: a line, or none."""
    best = min((row for row in table.rows if row.family in STATIC), key=_points_better, default=None)
    if best is None:
        return []
    drops = [_turned(best.better_by), _turned(best.boundary_better_by)]
    held = [
        None if drop.interval is None else drop.interval[1] < most
        for drop, most in zip(drops, (ALLOWED, ALLOWED_AT_BOUNDARIES), strict=True)
    ]
    aim = "no interval" if None in held else "reached" if all(held) else "missed"
    return [
        f"Against the best of its class trained to run whole, {best.name} ({best.miou:.1f} mIoU), token passing loses "
        f"{_points(drops[0])} points, at boundaries {_points(drops[1])}; aim: upper ends below {ALLOWED:g} and "
        f"{ALLOWED_AT_BOUNDARIES:g}: {aim}."
    ]


def _points_better(row: RivalRow) -> float:
    assert row.better_by is not None
    return row.better_by.points


def _turned(lost: PointsLost | None) -> PointsLost:
    assert lost is not None
    ends = lost.interval
    return PointsLost(points=-lost.points, interval=None if ends is None else (-ends[1], -ends[0]))


def _points(lost: PointsLost | None) -> str:
    if lost is None:
        return "-"
    return f"{lost.points:.2f}" + (
        "" if lost.interval is None else f" ({lost.interval[0]:.2f} to {lost.interval[1]:.2f})"
    )
