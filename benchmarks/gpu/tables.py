"""The tables of docs/benchmarks.md from the JSON of `prove.py`, written between their marks.

<!-- table: benchmarks/gpu/prove.py NAME -->
...
<!-- end of table -->
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from report import between_marks

from gpu.cases import AIMED_PIXELS
from gpu.models import EVERYTHING, PROFILES
from gpu.result import AIMS, PACKED_AIM, BaselineRow, GpuReport, OneGraphRow, StagedRow, TraceRow

NOT_RUN = "Not measured: there was no GPU. `make prove-gpu` fills this table on a machine with one."


def proved_table(report: GpuReport) -> str:
    """What was tried and how it went, and what was not tried and why."""
    where = f"{report.gpu.name}, compute capability {report.gpu.compute_capability}" if report.gpu else "no GPU"
    cpu = report.machine.get("cpu", "unknown processor")
    head = f"{report.date}, {where}; {cpu}; PyTorch {report.versions.get('torch', 'not installed')}."
    tried = (
        ("self-test on the CPU", report.selftest),
        ("kernels on the GPU", report.kernels),
        ("C++ plugins", report.plugin),
        ("device memory", report.memory),
        ("", report.broken),
    )
    rows = [
        (group, outcome.name, "ok" if outcome.ok else "**wrong**", outcome.detail)
        for group, outcomes in tried
        for outcome in outcomes
    ]
    for row in report.parity:
        detail = f"{row.explained} decisions explained, floats at {row.float_error:.0%} of what is allowed"
        if row.failures:
            detail = row.failures[0]
        rows.append(("parity, " + row.precision, row.name, "**wrong**" if row.failures else "ok", detail))
    rows += [("", undone.what, "not done", undone.why) for undone in report.undone]
    for section in report.sections:
        shown = "**failed**" if section.outcome == "failed" else section.outcome
        rows.append(("section", section.name, shown, section.why))
    return f"{head}\n\n{_table(('', 'what', 'outcome', ''), rows)}"


def latency_table(report: GpuReport) -> str:
    """Staged against dense, with the efficiency that is aimed at beside what was reached."""
    if not report.staged:
        return NOT_RUN
    rows = []
    for row in report.staged:
        aim = None
        if row.pixels == AIMED_PIXELS and row.profile != EVERYTHING:
            aim = AIMS[row.model] if row.images == 1 else PACKED_AIM
        rows.append(
            (
                _case(row),
                row.profile,
                f"{row.dense.p50:.2f} / {row.dense.p99:.2f}",
                f"{row.staged.p50:.2f} / {row.staged.p99:.2f}",
                f"{row.speedup:.2f}x",
                f"{row.predicted:.2f}x",
                f"{row.efficiency:.2f}",
                "" if aim is None else f"{aim:.2f} {'reached' if row.efficiency >= aim else 'missed'}",
            )
        )
    head = ("", "kept", "dense ms p50 / p99", "staged ms p50 / p99", "faster", "by MACs", "efficiency", "aim")
    costs = [
        f"ViT-{entry.model} {entry.pixels} px, {entry.images}: {entry.microseconds:.0f} us"
        for entry in report.boundaries
    ]
    return f"{_table(head, rows)}\n\nA gate with its boundary costs, everything kept: {'; '.join(costs)}."


def break_even_table(report: GpuReport) -> str:
    """By size, resolution and batch: how much faster each profile is, and where dense is."""
    if not report.staged:
        return NOT_RUN
    profiles = (EVERYTHING, *PROFILES)
    cases = list(dict.fromkeys((row.model, row.pixels, row.images) for row in report.staged))
    by_case = {(row.model, row.pixels, row.images, row.profile): row for row in report.staged}
    rows = []
    for case in cases:
        found = [by_case.get((*case, profile)) for profile in profiles]
        some = next(row for row in found if row is not None)
        rows.append((_case(some), *("" if row is None else _cell(row) for row in found), _fewest(found)))
    return _table(("", *profiles, "pays from MACs saved of"), rows)


def _cell(row: StagedRow) -> str:
    return f"{row.speedup:.2f}x" if row.speedup > 1 else f"dense ({row.speedup:.2f}x)"


def _fewest(rows: Iterable[StagedRow | None]) -> str:
    """The saving at which both take as long, between the two profiles on either side of it."""
    points = sorted((1 - 1 / row.predicted, row.speedup) for row in rows if row is not None)
    if points[0][1] > 1:
        return f"below {points[0][0]:.0%}" if points[0][0] > 0 else "always"
    for (low, slow), (high, fast) in itertools.pairwise(points):
        if slow <= 1 < fast:
            return f"{low + (high - low) * (1 - slow) / (fast - slow):.0%}"
    return f"above {points[-1][0]:.0%}"


def baselines_table(report: GpuReport) -> str:
    """Other ways to run the dense network."""
    if not report.baselines:
        return NOT_RUN
    rows = [
        (
            _case(row),
            row.way,
            f"{row.dense.p50:.2f} / {row.dense.p99:.2f}",
            f"{row.latency.p50:.2f} / {row.latency.p99:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.images_per_s:.0f}",
            f"{row.agreement:.4f}",
        )
        for row in report.baselines
    ]
    return _table(
        ("", "dense", "as elsewhere, ms p50 / p99", "this way, ms p50 / p99", "faster", "images/s", "agreement"), rows
    )


def traces_table(report: GpuReport) -> str:
    """What a frame does, counted in a trace."""
    if not report.traces:
        return NOT_RUN
    rows = [
        (
            _case(row),
            row.way,
            f"{row.host_syncs:g}",
            f"{row.graph_launches:g}",
            f"{row.kernels:g}",
            f"{row.busy_us:.0f}",
            ", ".join(row.attention),
        )
        for row in report.traces
    ]
    return _table(("", "", "host syncs", "graph launches", "kernels", "device busy us", "attention kernels"), rows)


def bandwidth_table(report: GpuReport) -> str:
    """The token kernels beside a copy of as many bytes."""
    if not report.bandwidth or report.copy_gb_per_s is None:
        return NOT_RUN
    rows = [
        (
            row.kernel,
            f"{row.kept} of {row.tokens}",
            f"{row.row_bytes}",
            f"{row.microseconds:.1f}",
            f"{row.gb_per_s:.0f}",
            f"{row.of_copy:.2f}",
        )
        for row in report.bandwidth
    ]
    table = _table(("kernel", "rows", "bytes a row", "us", "GB/s", "of a copy as large"), rows)
    return f"{table}\n\nA copy of 256 MiB on the device reaches {report.copy_gb_per_s:.0f} GB/s, read and written."


def engines_table(report: GpuReport) -> str:
    """Engines of the registry on the same bundle."""
    if not report.engines:
        return NOT_RUN
    rows = [
        (
            f"{row.engine}, {row.precision}",
            row.model,
            f"{row.dense.p50:.2f} / {row.dense.p99:.2f}",
            f"{row.staged.p50:.2f} / {row.staged.p99:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.predicted:.2f}x",
            f"{row.efficiency:.2f}",
            row.parity[0] if row.parity else "ok",
        )
        for row in report.engines
    ]
    head = ("engine", "", "dense ms p50 / p99", "staged ms p50 / p99", "faster", "by MACs", "efficiency", "parity")
    return _table(head, rows)


def frames_table(report: GpuReport) -> str:
    """One graph a frame beside the stages one by one and every dense way, with what is aimed at."""
    if not report.frames:
        return NOT_RUN
    rows = []
    for row in report.frames:
        dense = "; ".join(f"{way.name} {way.latency.p50:.2f} ({way.ratio:.2f}x)" for way in row.dense)
        reached = "reached" if row.efficiency >= row.aim else "missed"
        rows.append(
            (
                _case(row),
                row.profile,
                dense,
                f"{row.staged.p50:.2f} ({row.staged_ratio:.2f}x)",
                f"{row.one_graph.p50:.2f} / {row.one_graph.p99:.2f}",
                f"{row.images_per_s:.0f}",
                f"{row.predicted:.2f}x",
                f"{row.efficiency:.2f}",
                f"{row.aim:.2f} {reached}",
                f"{row.graph_nodes} nodes, {row.graph_seconds:.2f} s, {row.graph_bytes / 1e6:.0f} MB",
            )
        )
    times = ("dense ms p50 (one graph is faster)", "stages ms p50", "one graph ms p50 / p99", "images/s")
    head = ("", "kept", *times, "by MACs", "efficiency", "aim", "the graph")
    return _table(head, rows)


TABLES = {
    "proved": proved_table,
    "latency": latency_table,
    "frames": frames_table,
    "break-even": break_even_table,
    "baselines": baselines_table,
    "traces": traces_table,
    "engines": engines_table,
    "bandwidth": bandwidth_table,
}


def mark(name: str) -> str:
    """The line before a table."""
    return f"<!-- table: benchmarks/gpu/prove.py {name} -->"


def write_tables(report: GpuReport, page: Path) -> None:
    """Replace every table of `page`; it is written only if all marks are in it."""
    text = page.read_text()
    for name, table in TABLES.items():
        text = between_marks(text, mark(name), table(report))
    page.write_text(text)


def _case(row: StagedRow | BaselineRow | TraceRow | OneGraphRow) -> str:
    return f"ViT-{row.model} {row.pixels} px, {row.images} image{'s' if row.images > 1 else ''}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
