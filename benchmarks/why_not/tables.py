"""The tables of README and docs/benchmarks.md from the JSON of `compare.py`, put between their marks.

<!-- table: benchmarks/why_not/compare.py NAME -->      README's has no NAME
...
<!-- end of table -->
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from report import ENGINE_NAMES, between_marks

from dovit_deploy.printing import plural
from why_not.result import FAMILIES, FrameSavings, PointsLost, Report, SplitReport, WayRow

README_FAMILIES = ("smaller", "dense-trained smaller", "shallower", "merging")
SHOWN = {
    "smaller": "same weights, smaller input",
    "dense-trained smaller": "dense-trained, smaller input",
    "shallower": "dense-trained, fewer layers",
    "merging": "token merging",
}


def readme_table(report: Report) -> str:
    """Few rows of the first split: dense, two operating points, and each alternative nearest to the first in time."""
    split = report.splits[0]
    own = next(row for row in split.rows if row.family == "token passing")
    passing = [row for row in split.rows if row.family == "token passing"][:2]
    chosen = [row for row in split.rows if row.family in ("dense", "dense-trained")] + passing
    for family in README_FAMILIES:
        rows = [row for row in split.rows if row.family == family]
        # Nearest as a ratio of speed-ups: 1.5x is as far from 1x as 2.25x from 1.5x.
        chosen += sorted(rows, key=lambda row: abs(math.log(row.speedup / own.speedup)))[:1]
    body = [(_named(row), _number(row.miou), f"{row.macs_saved:.0%}", f"{row.speedup:.2f}x") for row in chosen]
    return _table(("", "mIoU", "MACs saved", "speed-up over dense"), body) + "\n\n" + _origin(report, split)


def rows_table(report: Report) -> str:
    """Every way but the curve's, split by split."""
    header = (
        *("", "mIoU", "boundary IoU", "pixel accuracy"),
        *("drop from dense (95 %)", "drop from dense-trained (95 %)", "GMAC", "MACs saved", "speed-up"),
    )

    def line(row: WayRow) -> Sequence[str]:
        return (
            *(_named(row), _number(row.miou), _number(row.boundary_iou), _number(row.pixel_accuracy)),
            "-" if row.family == "dense" else _drop(row.drop),
            "-" if row.family == "dense-trained" else _drop(row.drop_from_dense_trained),
            *(f"{row.gmacs:.2f}", f"{row.macs_saved:.0%}", f"{row.speedup:.2f}x"),
        )

    def table(split: SplitReport) -> str:
        return _table(header, [line(row) for row in split.rows if row.family != "curve"])

    return _by_split(report, table) + "\n\n" + _origin(report, report.splits[0])


def equal_latency_table(report: Report) -> str:
    """Each operating point, and what the alternatives reach in its time; the difference in brackets."""
    header = ("token passing at", "speed-up", "mIoU", *(SHOWN[family] for family in FAMILIES))

    def table(split: SplitReport) -> str:
        body = []
        for point in split.equal_latency:
            others = (point.others[family] for family in FAMILIES)
            shown = ("-" if other is None else f"{other:.1f} ({other - point.miou:+.1f})" for other in others)
            body.append((point.name, f"{point.speedup:.2f}x", _number(point.miou), *shown))
        return _table(header, body)

    return _by_split(report, table)


def curve_table(report: Report) -> str:
    """Token passing at every threshold, dearest first."""
    header = ("", "MACs saved", "mIoU", "drop (95 %)", "speed-up")

    def table(split: SplitReport) -> str:
        rows = [row for row in split.rows if row.family in ("dense", "token passing", "curve")]
        body = [
            (row.name, f"{row.macs_saved:.1%}", f"{row.miou:.2f}", _drop(row.drop), f"{row.speedup:.2f}x")
            for row in sorted(rows, key=lambda row: row.macs_saved)
        ]
        return _table(header, body)

    return _by_split(report, table)


def classes_table(report: Report) -> str:
    """IoU of each class, dense and at the bundle's own thresholds."""

    def table(split: SplitReport) -> str:
        body = [
            (
                *(row.name, _number(row.dense), _number(row.dynamic)),
                "-" if row.dense is None or row.dynamic is None else f"{row.dense - row.dynamic:.1f}",
            )
            for row in split.classes
        ]
        return _table(("class", "dense", "own thresholds", "drop"), body)

    return _by_split(report, table)


def frames_table(report: Report) -> str:
    """The frames that saved most and least at the bundle's own thresholds."""

    def line(split: SplitReport, kind: str, frame: FrameSavings) -> Sequence[str]:
        tokens = " -> ".join(str(count) for count in frame.kept)
        return (f"{split.split}, {kind}", f"`{frame.stem}`", tokens, f"{frame.macs_saved:.0%}")

    body = [
        line(split, kind, frame)
        for split in report.splits
        for kind, frame in (("cheapest", split.cheapest), ("dearest", split.dearest))
    ]
    return _table(("", "frame", "tokens entering each stage", "MACs saved"), body)


DOCS_TABLES: dict[str, Callable[[Report], str]] = {
    "rows": rows_table,
    "equal latency": equal_latency_table,
    "curve": curve_table,
    "classes": classes_table,
    "frames": frames_table,
}


def mark(name: str = "") -> str:
    """The line before a table."""
    return f"<!-- table: {' '.join(filter(None, ('benchmarks/why_not/compare.py', name)))} -->"


def write_tables(report: Report, *, readme: Path | None, docs: Path | None) -> None:
    """Put the tables into the pages that are given; raises ValueError before anything is written."""
    pages: dict[Path, str] = {}
    if readme is not None:
        pages[readme] = between_marks(readme.read_text(encoding="utf-8"), mark(), readme_table(report))
    if docs is not None:
        text = docs.read_text(encoding="utf-8")
        for name, table in DOCS_TABLES.items():
            text = between_marks(text, mark(name), table(report))
        pages[docs] = text
    # All tables are made before the first page is written, so a missing mark changes nothing.
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_split(report: Report, table: Callable[[SplitReport], str]) -> str:
    parts = (
        f"`{split.split}`, {runtime_name(split)} ({split.frames} frames, {plural(split.blocks, 'block')}):\n\n"
        + table(split)
        for split in report.splits
    )
    return "\n\n".join(parts)


def _origin(report: Report, split: SplitReport) -> str:
    every = "" if report.every == 1 else f", every {report.every}th"
    return (
        f"{report.dataset}, {split.split} ({split.frames} frames{every}), {runtime_name(split)}, one thread, same "
        f"frames, interleaved; {report.machine['cpu']}, {report.date}; `{report.command}`."
    )


def runtime_name(split: SplitReport) -> str:
    """ "OpenVINO int8"."""
    return f"{ENGINE_NAMES.get(split.engine, split.engine)} {split.precision}"


def _named(row: WayRow) -> str:
    return f"token passing, {row.name}" if row.family == "token passing" else row.name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _drop(drop: PointsLost | None) -> str:
    if drop is None:
        return "-"
    if drop.interval is None:
        return f"{drop.points:.2f}"
    return f"{drop.points:.2f} ({drop.interval[0]:.2f} to {drop.interval[1]:.2f})"
