"""What does the page of a benchmark show? The figures of `bench --json`: engines side by side, frames by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dovit_deploy.credentials import masked
from dovit_deploy.families.any_spec import AnySpec
from dovit_deploy.measure.bench_compare import verdict
from dovit_deploy.measure.bench_records import (
    BenchComparison,
    BenchReport,
    BenchResult,
    FrameMacs,
    FrameResult,
)
from dovit_deploy.measure.bench_text import HEADERS, NUMBERS, bench_lines, bench_rows
from dovit_deploy.pages.charts import Bar, Bars, ChartPoint, Scatter
from dovit_deploy.pages.page import Fact, Lines, Page, PageSection, PageTable, Part, facts_table, machine_table
from dovit_deploy.printing import plural

QUARTERS = ("easiest quarter", "second", "third", "hardest quarter")


def page_from_bench(report: BenchReport, spec: AnySpec, *, frames: str, command: str) -> Page:
    """The page of a benchmark.

    Args:
        report: as in the file of `--json`.
        spec: of the bundle.
        frames: what was measured on, as given.
        command: that of the run, without credentials.
    """
    sections = [
        PageSection("Engines and precisions", _side_by_side(report, spec)),
        PageSection("Latency and computation", _against_macs(report)),
        PageSection("Easy and hard frames", _by_difficulty(report)),
        _settings(report, frames, command),
    ]
    if report.comparison is not None:
        sections.insert(1, PageSection("Against an earlier report", _changes(report.comparison)))
    subtitle = (
        f"{plural(report.frames, 'frame')} of {spec.size[1]}x{spec.size[0]} pixels, {plural(report.repeat, 'round')}, "
        f"{plural(report.threads, 'thread')}, {report.machine['cpu']}"
    )
    return Page(f"dovit bench {Path(report.bundle).name}", subtitle, _headline(report), tuple(sections))


def _headline(report: BenchReport) -> tuple[Fact, ...]:
    fastest = min(report.results, key=lambda result: result.dynamic.latency_ms.p50)
    name, latency = f"{fastest.engine} {fastest.precision}", fastest.dynamic.latency_ms
    speedup = Fact("-", "dynamic against dense", "the bundle has no dense form")
    if fastest.speedup is not None:
        speedup = Fact(
            f"{fastest.speedup:.2f}x",
            "dynamic against dense",
            f"{fastest.predicted_speedup:.2f}x predicted from FLOPs",
        )
    facts = (
        Fact(f"{latency.p50:.1f} ms", "model step, median", f"{name}; 99 % of the runs below {latency.p99:.1f} ms"),
        speedup,
        Fact(f"{fastest.flops_saved:z.1%}", "FLOPs saved", "mean over the frames"),
    )
    if len(report.results) == 1:
        return facts
    first = report.results[0]
    note = f"{name} dynamic against {first.engine} {first.precision} {'dense' if first.dense else 'dynamic'}"
    return (*facts, Fact(f"{fastest.total_factor:.2f}x", "tokens and engine together", note))


def _side_by_side(report: BenchReport, spec: AnySpec) -> tuple[Part, ...]:
    dense = all(result.dense is not None for result in report.results)
    rows = [
        Bar(
            f"{result.engine} {result.precision}",
            (*((result.dense.latency_ms.p50,) if result.dense is not None else ()), result.dynamic.latency_ms.p50),
        )
        for result in report.results
    ]
    bars = Bars("Model step, median in ms", ("dense", "dynamic") if dense else ("dynamic",), tuple(rows), names=150)
    ninety = [
        Bar(row.name, (result.dynamic.latency_ms.p50, result.dynamic.latency_ms.p90, result.dynamic.latency_ms.p99))
        for row, result in zip(rows, report.results, strict=True)
    ]
    spread = Bars("Dynamic, percentiles in ms", ("p50", "p90", "p99"), tuple(ninety), names=150)
    table = PageTable("Model step in ms", HEADERS, tuple(bench_rows(report)), right=tuple(NUMBERS), wide=True)
    without = report.model_copy(update={"comparison": None})
    return (bars, spread, table, Lines(tuple(line.strip() for line in bench_lines(without, spec))))


def _changes(comparison: BenchComparison) -> tuple[Part, ...]:
    rows = tuple(
        (
            *(change.engine, change.precision, change.run),
            *(f"{change.before_ms:.2f}", f"{change.now_ms:.2f}", str(change.frames), verdict(change)),
        )
        for change in comparison.changes
    )
    head = ("engine", "precision", "run", "p50 before, ms", "now", "frames", "verdict")
    parts: list[Part] = [PageTable(f"Against {comparison.file}", head, rows, right=(3, 4, 5), wide=True)]
    if comparison.differences:
        parts.append(Lines(tuple(f"not as it was: {line}" for line in comparison.differences)))
    return tuple(parts)


def _against_macs(report: BenchReport) -> tuple[Part, ...]:
    parts: list[Part] = []
    for result in report.results:
        name = f"{result.engine} {result.precision}"
        groups = tuple((way, points) for way in ("dense", "dynamic") if (points := _points(result, way)))
        line = None
        if result.dense is not None:
            macs, most = _dense_gmacs(result), result.dense.latency_ms.p50
            line = ("what MACs predict: time in proportion to them, from the dense median", ((0.0, 0.0), (macs, most)))
        parts.append(
            Scatter(f"{name}: one point a frame", "GMACs", "model step, median in ms", groups, line, zero=True)
        )
    return tuple(parts)


def _dense_gmacs(result: BenchResult) -> float:
    return max(_macs(frame).dense for frame in result.per_frame)


def _macs(frame: FrameResult) -> FrameMacs:
    # Only files of older versions lack it, and a page is made of a new measurement.
    assert frame.gmacs is not None
    return frame.gmacs


def _points(result: BenchResult, way: str) -> tuple[ChartPoint, ...]:
    points = []
    for frame in result.per_frame:
        macs, times = _macs(frame), frame.dense_ms if way == "dense" else frame.dynamic_ms
        if times:
            gmacs, ms = macs.dense if way == "dense" else macs.actual, float(np.median(times))
            points.append(ChartPoint(gmacs, ms, f"{frame.frame}, {way}: {gmacs:.2f} GMACs, {ms:.2f} ms"))
    return tuple(points)


def _by_difficulty(report: BenchReport) -> tuple[Part, ...]:
    parts: list[Part] = []
    for result in report.results:
        name = f"{result.engine} {result.precision}"
        if len(result.per_frame) >= len(QUARTERS):
            parts += _quarters(result, name)
        rows = tuple(_frame_row(frame) for frame in result.per_frame)
        head = ("frame", "tokens per stage", "GMACs", "FLOPs saved", "dense, ms", "dynamic, ms", "speed-up")
        parts.append(PageTable(f"{name}, frame by frame", head, rows, right=(2, 3, 4, 5, 6), folded=True))
    return tuple(parts)


def _quarters(result: BenchResult, name: str) -> list[Part]:
    """Frames by what they cost, in four groups: does the time follow?"""
    ordered = sorted(result.per_frame, key=lambda frame: _macs(frame).actual)
    groups = [ordered[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(ordered)), len(QUARTERS))]
    ways = ("dense", "dynamic") if result.dense is not None else ("dynamic",)
    bars, rows = [], []
    for quarter, frames in zip(QUARTERS, groups, strict=True):
        times = [float(np.median([ms for frame in frames for ms in _times(frame, way)])) for way in ways]
        saved = 1 - sum(_macs(frame).actual for frame in frames) / sum(_macs(frame).dense for frame in frames)
        bars.append(Bar(quarter, tuple(times)))
        factor = f"{times[0] / times[1]:.2f}x" if len(times) == 2 else "-"
        rows.append((quarter, str(len(frames)), f"{saved:z.1%}", *(f"{ms:.2f}" for ms in times), factor))
    head = ("frames by GMACs", "frames", "FLOPs saved", *(f"{way}, ms" for way in ways), "speed-up")
    return [
        Bars(f"{name}: model step, median in ms", ways, tuple(bars)),
        PageTable(f"{name}: quarters by GMACs", head, tuple(rows), right=tuple(range(1, len(head))), wide=True),
    ]


def _times(frame: FrameResult, way: str) -> Sequence[float]:
    return (frame.dense_ms or ()) if way == "dense" else frame.dynamic_ms


def _frame_row(frame: FrameResult) -> tuple[str, ...]:
    return (
        frame.frame,
        " -> ".join(map(str, frame.kept)),
        f"{_macs(frame).actual:.3f}",
        f"{frame.flops_saved:z.1%}",
        "-" if frame.dense_ms is None else f"{np.median(frame.dense_ms):.2f}",
        f"{np.median(frame.dynamic_ms):.2f}",
        "-" if frame.speedup is None else f"{frame.speedup:.2f}x",
    )


def _settings(report: BenchReport, frames: str, command: str) -> PageSection:
    rows = (
        ("command", command),
        ("bundle", report.bundle),
        ("frames", masked(frames)),
        ("rounds", str(report.repeat)),
        ("threads", str(report.threads)),
    )
    return PageSection("Settings", (facts_table("Settings", rows), machine_table(report.machine, report.versions)))
