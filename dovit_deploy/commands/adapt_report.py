"""What `dovit adapt` prints at its end: the first line, the tables, and how what was made fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovit_deploy.calibrate.units import named_units
from dovit_deploy.commands import console
from dovit_deploy.commands.console import show_table
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.adapt.report import AdaptReport, RuleBeside, TableEntry, WayEntry
    from dovit_deploy.bundle.calibration import Interval


def show_adapted(report: AdaptReport, *, seconds: float) -> None:
    """Print `report`; `seconds`: what all of it took."""
    console.result(report.verdict)
    for table in report.tables:
        _show_table(table)
    _show_distilled(report)
    if report.promise is not None:
        counted = named_units(report.promise.unit, report.promise.units, "held-out ")
        console.result(f"promised of images like these: {report.budget}; tested on {counted}")
    said = ", ".join(f"layer {gate.layer}: {gate.agreement:.1%}" for gate in report.gates)
    console.result(
        f"gates fitted to {plural(report.fitted, 'image')}; tokens that they answer as the network does, "
        f"before {said}; {seconds:.0f} s"
    )


def _show_distilled(report: AdaptReport) -> None:
    run = report.distilled
    if run is None or report.dense_agreement is None:
        return
    # Of a network whose windows slide it learnt from each window.
    seen = plural(run.images, "image" if run.images == report.fitted else "window")
    console.result(
        f"fine-tuned for {plural(run.steps, 'step')} ({run.seconds / 60:.2g} minutes) on {seen}"
        f", loss {run.loss_first:.3f} -> {run.loss_last:.3f}; with nothing stopped {report.dense_agreement:.2%}"
        f"{_brackets(report.dense_agreement_interval)} of the pixels get the class that the network as it was given "
        "gives them"
    )
    if report.original is not None:
        console.result(f"the network as it was given: {report.original}")


def _brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({_ends(interval, scale=100)})"


def _show_table(table: TableEntry) -> None:
    score = "mIoU" if table.labelled else "agreement"
    same = "as dense" if table.dense is None else "as given"
    score_columns = ("mIoU", "drop", "95 %") if table.labelled else ("95 %",)
    headers = ("", "MACs saved", same, *score_columns, f"{score} of token passing there", "gain")
    rows = [_row(way, labelled=table.labelled) for way in table.ways]
    title = f"{plural(table.images, 'held-out image')} of {table.name} in {plural(table.blocks, 'block')}"
    if table.dense_miou is not None:
        given = "dense" if table.dense is None else "dense as given"
        title = f"{plural(table.images, 'labelled image')} of {table.name}; {given}: mIoU {table.dense_miou:.2f}"
    show_table(title, headers, rows, right=range(1, len(headers)))
    if table.left_out is not None:
        console.result(f"no smaller input: {table.left_out}")


def _row(way: WayEntry, *, labelled: bool) -> tuple[str, ...]:
    cells = [way.name, f"{way.flops_saved:z.1%}", f"{way.agreement:.2%}"]
    if labelled:
        cells += [_points(way.miou), _points(way.drop), _ends(way.drop_interval)]
    else:
        cells.append(_ends(way.agreement_interval, scale=100))
    return (*cells, *_rule_cells(way.rule))


def _rule_cells(rule: RuleBeside | None) -> tuple[str, str]:
    """The rule at as many MACs: its score with what it saves, and what it has more."""
    if rule is None:
        return "-", "-"
    score = f"{rule.agreement:.2%}" if rule.miou is None else f"{rule.miou:.2f}"
    ends = "" if rule.gain_interval is None else f" ({_ends(rule.gain_interval)})"
    return f"{score} at {rule.flops_saved:z.1%}", f"{rule.gain:+.2f}{ends}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _ends(interval: Interval | None, *, scale: float = 1.0) -> str:
    return "-" if interval is None else f"{scale * interval.low:z.2f} to {scale * interval.high:z.2f}"
