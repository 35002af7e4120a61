"""The tables of docs/benchmarks.md and README.md from the JSON of `cpu.py`, written between their marks.

<!-- table: benchmarks/cpu.py NAME -->      that of README.md has no NAME
...
<!-- end of table -->
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from report import ENGINE_NAMES, between_marks, write_table

from dovit_deploy.errors import InputError
from on_cpu.cells import PROFILES, default_cells, is_baseline
from on_cpu.result import BASELINE, DEFAULT, CellRow, CpuCase, CpuCell, CpuReport, CpuWay

DENSE_WAYS = ("dense", "plain", "nncf", "eager", "compiled")
NOT_MEASURED = "Not measured yet."
SHOWN = {
    "dense": "dense",
    "tokens": "token passing",
    "plain": "the dense ONNX file as it is",
    "nncf": "dense, quantised by NNCF",
    "eager": "dense, eager",
    "compiled": "dense, torch.compile",
    "merging": "merging as many tokens",
}


def best_dense(report: CpuReport, row: CellRow) -> CellRow | None:
    """The fastest dense way of the same case that is at least as accurate: in mIoU, or in agreement with dense fp32.

    Of random weights, for which accuracy means nothing, the fastest of all.
    """
    rivals = report.like(row.cell, runs=DENSE_WAYS)
    return max((other for other in rivals if _as_accurate(other, row)), key=lambda other: other.ratio, default=None)


def _as_accurate(other: CellRow, row: CellRow) -> bool:
    theirs, ours = other.accuracy, row.accuracy
    if theirs is None or ours is None:
        return True
    by_labels = theirs.miou is not None and ours.miou is not None and theirs.miou >= ours.miou
    return by_labels or theirs.agreement >= ours.agreement


def factors(report: CpuReport, row: CellRow) -> tuple[float, float] | None:
    """Token factor: over dense of the same engine and precision; engine factor: of that over the baseline."""
    way = row.cell.way
    same = CpuWay(runs="dense", engine=way.engine, precision=way.precision)
    dense = report.row(row.cell.model_copy(update={"way": same}))
    return None if dense is None or way.runs != "tokens" else (row.ratio / dense.ratio, dense.ratio)


def readme_table(report: CpuReport) -> str:
    """The default model alone: dense fp32, the best dense ways, the default engine and the fastest."""
    rows = _default_rows(report, threads=1, streams=1)
    if not rows:
        return NOT_MEASURED
    tokens = [row for row in rows if row.cell.way.runs == "tokens"]
    dense = sorted((row for row in rows if row.cell.way.runs in DENSE_WAYS), key=lambda row: -row.ratio)[:3]
    chosen = [row for row in rows if is_baseline(row.cell)] + [row for row in dense if not is_baseline(row.cell)][::-1]
    chosen += sorted(tokens, key=lambda row: row.ratio)
    return f"{_accuracy_table(report, chosen, wall=False)}\n\n{_origin(report)}"


def default_table(report: CpuReport) -> str:
    """Every way of the default model, one thread."""
    rows = _default_rows(report, threads=1, streams=1)
    return f"{_accuracy_table(report, rows, wall=True)}\n\n{_origin(report)}" if rows else NOT_MEASURED


def precisions_table(report: CpuReport) -> str:
    """What engine and precision gain, and what they lose against the same run in ONNX Runtime fp32."""
    rows = {(row.cell.way.runs, *_kind(row)): row for row in _default_rows(report, threads=1, streams=1)}
    body = []
    for kind in dict.fromkeys(_kind(row) for row in rows.values()):
        dense, tokens = rows.get(("dense", *kind)), rows.get(("tokens", *kind))
        if dense is not None or tokens is not None:
            body.append((ENGINE_NAMES.get(kind[0], kind[0]), kind[1], *_kept(dense), *_kept(tokens)))
    half = ("over dense fp32", "agreement", "drop (95 %)")
    head = ("engine", "precision", *(f"{runs}: {name}" for runs in ("dense", "tokens") for name in half))
    return f"{_table(head, body)}\n\n{_origin(report)}" if body else NOT_MEASURED


def _kind(row: CellRow) -> tuple[str, str]:
    return row.cell.way.engine, row.cell.way.precision


def _kept(row: CellRow | None) -> tuple[str, str, str]:
    """Ratio, and agreement and drop from the same run in ONNX Runtime fp32."""
    if row is None or row.accuracy is None:
        return _ratio(row), "-", "-"
    same, drop = row.accuracy.same_agreement, row.accuracy.same_drop
    agreement = "-" if same is None else f"{same:.4f}"
    return _ratio(row), agreement, "-" if drop is None else _with_interval(drop, row.accuracy.same_drop_interval)


def cores_table(report: CpuReport) -> str:
    """The default model with two threads, and with two streams."""
    body = []
    for threads, streams in ((1, 1), (2, 1), (1, 2)):
        for row in _default_rows(report, threads=threads, streams=streams):
            if row.cell.way.runs in ("dense", "tokens"):
                alone = report.row(row.cell.model_copy(update={"threads": 1, "streams": 1}))
                gain = "-" if alone is None else f"{alone.p50 / row.p50:.2f}x"
                found = (f"{row.p50:.1f} / {row.p99:.1f}", f"{row.first:.0f}", gain, _ratio(row))
                body.append(
                    (f"{threads}", f"{streams}", *_named(row), *found, "-" if alone is None else _agreement(alone))
                )
    head = ("threads", "streams", "", "engine", "precision", "ms an image p50 / p99", "first, slowest")
    head += ("over one thread", "over dense fp32", "agreement")
    return _table(head, body) if body else NOT_MEASURED


def bench_table(report: CpuReport) -> str:
    """The bench model: a line for every size of model and image and every profile."""
    cases = dict.fromkeys(row.cell.case for row in report.rows if row.cell.case.model != DEFAULT)
    body = [_bench_line(report, case, profile) for case in cases for profile in PROFILES]
    kinds = [f"{ENGINE_NAMES[engine]} {precision}" for engine, precision in _kinds(report)]
    head = ("model", "profile", "dense ms", "plain export", "best dense", *kinds, "best, over best dense")
    return _table(head, body) if body else NOT_MEASURED


def _kinds(report: CpuReport) -> list[tuple[str, str]]:
    """Engines and precisions in which the bench model's tokens ran."""
    ways = (row.cell for row in report.rows if row.cell.way.runs == "tokens" and row.cell.case.model != DEFAULT)
    return list(dict.fromkeys((cell.way.engine, cell.way.precision) for cell in ways))


def _bench_line(report: CpuReport, case: CpuCase, profile: str) -> Sequence[str]:
    def found(way: CpuWay) -> CellRow | None:
        return report.row(CpuCell(case=case, way=way))

    def way(runs: str, engine: str, precision: str) -> CpuWay:
        return CpuWay.model_validate({"runs": runs, "engine": engine, "precision": precision})

    tokens = [found(CpuWay(runs="tokens", engine=one, precision=two, profile=profile)) for one, two in _kinds(report)]
    fastest = max((row for row in tokens if row is not None), key=lambda row: row.ratio, default=None)
    baseline, plain = found(way(*BASELINE)), found(way("plain", "onnxruntime", "fp32"))
    rival = None if fastest is None else best_dense(report, fastest)
    over = "-" if fastest is None or rival is None else f"{fastest.ratio / rival.ratio:.2f}x"
    best = "-" if rival is None else f"{rival.ratio:.2f}x ({rival.cell.way.engine} {rival.cell.way.precision})"
    return (
        f"{case.model} {case.size[0]}x{case.size[1]}",
        profile,
        "-" if baseline is None else f"{baseline.cpu:.0f}",
        _ratio(plain),
        best,
        *(_ratio(row) for row in tokens),
        over,
    )


def undone_table(report: CpuReport) -> str:
    """What was not measured, and why."""
    reasons: dict[str, list[str]] = {}
    for entry in report.undone:
        reasons.setdefault(entry.why, []).append(entry.cell.label)
    lines = [f"- {why}: {'; '.join(labels[:3])}{_more(labels)}" for why, labels in reasons.items()]
    return "\n".join(lines) if lines else "Everything was measured."


def _more(labels: Sequence[str]) -> str:
    return f" and {len(labels) - 3} more" if len(labels) > 3 else ""


def machines_table(reports: Sequence[CpuReport]) -> str:
    """A line for every machine: the default model, one thread."""
    body = []
    for report in reports:
        rows = [row for row in _default_rows(report, threads=1, streams=1) if row.cell.way.runs == "tokens"]
        plain = next((row for row in rows if (row.cell.way.engine, row.cell.way.precision) == BASELINE[1:]), None)
        fastest = max(rows, key=lambda row: row.ratio, default=None)
        named = "-" if fastest is None else " ".join(_named(fastest)[1:])
        rival = None if fastest is None else best_dense(report, fastest)
        over = "-" if fastest is None or rival is None else f"{fastest.ratio / rival.ratio:.2f}x"
        facts = (f"{report.machine['cpu']}", _features(report), report.date)
        agreement = "-" if fastest is None else _agreement(fastest)
        body.append((*facts, _ratio(plain), f"{named} {_ratio(fastest)}", agreement, over))
    head = ("processor", "has", "date", "ONNX Runtime fp32", "fastest", "agreement", "over the best dense as accurate")
    return _table(head, body)


TABLES = {
    "default": default_table,
    "precisions": precisions_table,
    "cores": cores_table,
    "bench": bench_table,
    "undone": undone_table,
}


def mark(name: str = "") -> str:
    """The line before a table."""
    return f"<!-- table: {' '.join(filter(None, ('benchmarks/cpu.py', name)))} -->"


def check_pages(*, readme: Path | None, docs: Path | None) -> None:
    """See that every table has its place: a run is too long to find out at its end.

    Raises:
        InputError: a page cannot be read, or lacks a mark.
    """
    for page, names in ((readme, ("",)), (docs, (*TABLES, "machines"))):
        try:
            for name in names if page is not None else ():
                between_marks(page.read_text(encoding="utf-8"), mark(name), "")
        except (OSError, ValueError) as error:
            raise InputError(f"{page} cannot take the tables: {error}") from error


def write_tables(reports: Sequence[CpuReport], *, readme: Path | None, docs: Path | None) -> None:
    """Put the tables of the first report and a line of each into the pages, which `check_pages` has seen."""
    if readme is not None:
        write_table(readme, mark(), readme_table(reports[0]))
    if docs is not None:
        for name, table in TABLES.items():
            write_table(docs, mark(name), table(reports[0]))
        write_table(docs, mark("machines"), machines_table(reports))


def _default_rows(report: CpuReport, *, threads: int, streams: int) -> list[CellRow]:
    """In the order of the cells: what failed at first was measured last."""
    rows = [
        row
        for row in report.rows
        if row.cell.case.model == DEFAULT and (row.cell.threads, row.cell.streams) == (threads, streams)
    ]
    order = [cell for row in rows[:1] for cell in default_cells(row.cell.case.size)]
    return sorted(rows, key=lambda row: order.index(row.cell) if row.cell in order else len(order))


def _accuracy_table(report: CpuReport, rows: Sequence[CellRow], *, wall: bool) -> str:
    """CPU time as in the ratios; with `wall` also what a clock on the wall showed, which neighbours can lengthen."""
    labelled = any(row.accuracy is not None and row.accuracy.miou is not None for row in rows)
    head = ("", "engine", "precision", *(("mIoU", "drop (95 %)") if labelled else ()))
    head += ("boundary IoU, drop (95 %)",) if labelled and wall else ()
    head += ("agreement", "CPU ms")
    head += ("wall ms p50 / p99",) if wall else ()
    head += ("tokens * engine", "over dense fp32", "over the best dense as accurate")
    return _table(head, [_accuracy_line(report, row, labelled=labelled, wall=wall) for row in rows])


def _accuracy_line(report: CpuReport, row: CellRow, *, labelled: bool, wall: bool) -> Sequence[str]:
    rival, both = best_dense(report, row), factors(report, row)
    own = row.cell.way.runs in ("tokens", "merging")
    over = f"{row.ratio / rival.ratio:.2f}x ({_short(rival)})" if own and rival is not None else ""
    return (
        *_named(row),
        *(_labels(row) if labelled else ()),
        *((_boundary(row),) if labelled and wall else ()),
        _agreement(row),
        f"{row.cpu:.0f}",
        *((f"{row.p50:.0f} / {row.p99:.0f}",) if wall else ()),
        "" if both is None else f"{both[0]:.2f} * {both[1]:.2f}",
        _ratio(row),
        over,
    )


def _named(row: CellRow) -> tuple[str, str, str]:
    way = row.cell.way
    return SHOWN[way.runs], ENGINE_NAMES.get(way.engine, way.engine), way.precision


def _short(row: CellRow) -> str:
    """The way of a dense row in few words."""
    peer = "" if row.cell.way.runs == "dense" else f"{row.cell.way.runs}, "
    return f"{peer}{ENGINE_NAMES.get(row.cell.way.engine, row.cell.way.engine)} {row.cell.way.precision}"


def _labels(row: CellRow) -> tuple[str, str]:
    found = row.accuracy
    if found is None or found.miou is None or found.drop is None:
        return "-", "-"
    return f"{found.miou:.1f}", _with_interval(found.drop, found.drop_interval)


def _boundary(row: CellRow) -> str:
    """Boundary IoU, and the interval of how far it lies below that of dense fp32."""
    found = row.accuracy
    if found is None or found.boundary_iou is None:
        return "-"
    limits = found.boundary_drop_interval
    return f"{found.boundary_iou:.1f}" + ("" if limits is None else f" ({limits[0]:.2f} to {limits[1]:.2f})")


def _with_interval(drop: float, limits: tuple[float, float] | None) -> str:
    return f"{drop:.2f}" + ("" if limits is None else f" ({limits[0]:.2f} to {limits[1]:.2f})")


def _agreement(row: CellRow) -> str:
    return "-" if row.accuracy is None else f"{row.accuracy.agreement:.4f}"


def _ratio(row: CellRow | None) -> str:
    return "-" if row is None else f"{row.ratio:.2f}x"


def _origin(report: CpuReport) -> str:
    found = next((row.accuracy for row in report.rows if row.accuracy is not None), None)
    frames = "" if found is None else f" ({found.frames} frames)"
    return (
        f"{report.settings.bundle} on {report.settings.frames}{frames}, one thread, CPU time, "
        "medians of interleaved pairs; "
        f"{report.machine['cpu']} ({_features(report)}), {report.date}; `{report.command}`."
    )


def _features(report: CpuReport) -> str:
    return ", ".join(report.features) or "instruction sets not known"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
