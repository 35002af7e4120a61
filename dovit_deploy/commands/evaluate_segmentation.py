"""`dovit eval` of a segmentation bundle: its report on stdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.commands.eval_request import EvalRequest
from dovit_deploy.commands.table import show_table

if TYPE_CHECKING:
    from pathlib import Path

    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.measure.evaluation import ControlResult, EvalReport, Quality, Spread
    from dovit_deploy.measure.labelled_files import Dataset
    from dovit_deploy.runtime.session import Session


def segmentation_evaluation(bundle: Bundle, request: EvalRequest) -> Callable[[Session, Sequence[Session]], None]:
    """Open the data set; what is returned measures mIoU, prints the report and writes it.

    Raises:
        DatasetError: a fault in the data set, or one of other classes.
    """
    from dovit_deploy.measure.datasets import dataset_from_path
    from dovit_deploy.measure.evaluate import check_classes

    data = dataset_from_path(request.dataset, request.split)
    check_classes(data.classes, bundle.manifest)
    return partial(_measure, bundle, data, request)


def _measure(bundle: Bundle, data: Dataset, request: EvalRequest, session: Session, smaller: Sequence[Session]) -> None:
    from dovit_deploy.measure.evaluate import measure_set
    from dovit_deploy.measure.evaluation_report import report_from_measured

    with console.progress_bar(total=len(data), quiet=request.quiet) as advance:
        measured = measure_set(
            session,
            data,
            thresholds=request.given_thresholds,
            controls=request.controls,
            smaller=smaller,
            advance=advance,
        )
    report = report_from_measured(
        measured,
        session,
        dataset=request.dataset,
        split=request.split,
        thresholds=request.thresholds,
        controls=request.controls,
        smaller=smaller,
    )
    _show(report, bundle, verbose=request.verbose)
    console.write_json(request.json_file, report.model_dump(mode="json"))
    console.next_command(_next(report, bundle.path, request.json_file), quiet=request.quiet)


def _show(report: EvalReport, bundle: Bundle, *, verbose: bool) -> None:
    size = bundle.manifest.spec.size
    images = "1 image" if report.images == 1 else f"{report.images} images"
    title = (
        f"{bundle.path.name}, {size[0]}x{size[1]}, {report.engine} {report.precision}: "
        f"{report.dataset} {report.split}, {images}"
    )
    headers = ("run", "mIoU", "boundary", "pixels", "drop", "95 % interval", "GMACs", "saved")
    show_table(title, headers, _rows(report), right=range(1, 8))
    console.result("")
    for line in summary_lines(report):
        console.result(line)
    if verbose:
        _show_classes(report)
        _show_images(report)


def _rows(report: EvalReport) -> list[tuple[str, ...]]:
    dynamic, controls = report.dynamic, report.controls
    rows = [
        _row("dense", report.dense, None, None, None),
        _row("dynamic", dynamic, dynamic.drop, dynamic.drop_interval, dynamic.flops_saved),
    ]
    if controls is not None:
        named: list[tuple[str, ControlResult]] = [
            ("random, same counts", controls.random),
            ("all at the first gate", controls.first_gate),
            ("oracle gate, same counts", controls.oracle),
            ("oracle gate, any counts", controls.oracle_unlimited),
            *((f"dense at {small.size[0]}x{small.size[1]}", small) for small in controls.smaller_input),
        ]
        rows += [_row(name, entry, entry.drop, entry.drop_interval, entry.flops_saved) for name, entry in named]
    return rows


def _row(
    name: str,
    entry: Quality | ControlResult,
    drop: float | None,
    interval: tuple[float, float] | None,
    saved: float | None,
) -> tuple[str, ...]:
    return (
        name,
        f"{entry.miou:.2f}",
        f"{entry.boundary_iou:.2f}",
        f"{entry.pixel_accuracy:.2f}",
        "" if drop is None else f"{drop:.2f}",
        "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        f"{entry.gmacs:.3f}",
        "" if saved is None else f"{saved:.1%}",
    )


def summary_lines(report: EvalReport) -> list[str]:
    """What the table has no column for: the worst class, the spread over the images, what the rule is worth."""
    dynamic, boot = report.dynamic, report.bootstrap
    saved, tokens = dynamic.spread["flops_saved"], dynamic.spread["tokens"]
    assert not isinstance(saved, tuple) and isinstance(tokens, tuple)
    lines = [
        f"largest drop of a class: {dynamic.worst_class} {dynamic.worst_class_drop:.2f}; "
        f"boundary drop {dynamic.boundary_drop:.2f}",
        f"FLOPs saved per image: {_spread(saved, percent=True)}",
        f"tokens entering the last stage: {_spread(tokens[-1], percent=False)} of {tokens[0].mean:.0f}",
        f"intervals: {boot.blocks} blocks of at most {boot.images_per_block} neighbouring images, "
        f"{boot.resamples} resamples",
    ]
    if report.controls is not None:
        efficiency = report.controls.gate_efficiency
        text = "none, the oracle is no better than chance" if efficiency is None else f"{efficiency:.2f}"
        lines.append(f"gate efficiency, (rule - random) / (oracle - random) at the same counts: {text}")
    return lines


def _spread(values: Spread, *, percent: bool) -> str:
    parts = (("min", values.min), ("p10", values.p10), ("mean", values.mean), ("p90", values.p90), ("max", values.max))
    return ", ".join(f"{name} {value:.1%}" if percent else f"{name} {value:.0f}" for name, value in parts)


def _show_classes(report: EvalReport) -> None:
    rows = []
    for name, dense in report.dense.iou.items():
        dynamic = report.dynamic.iou[name]
        drop = "" if dense is None or dynamic is None else f"{dense - dynamic:.2f}"
        rows.append((name, *("-" if value is None else f"{value:.2f}" for value in (dense, dynamic)), drop))
    console.result("")
    show_table("IoU per class", ("class", "dense", "dynamic", "drop"), rows, right=range(1, 4))


def _show_images(report: EvalReport) -> None:
    rows = [
        (
            row.image,
            " -> ".join(map(str, row.tokens.kept)),
            f"{row.flops_saved:.1%}",
            *("-" if value is None else f"{value:.2f}" for value in (row.miou_dense, row.miou_dynamic)),
        )
        for row in report.per_image
    ]
    headers = ("image", "tokens per stage", "saved", "mIoU dense", "dynamic")
    console.result("")
    show_table("image by image", headers, rows, right=range(2, 5))


def _next(report: EvalReport, path: Path, json_file: Path | None) -> str:
    """With the report kept on file, the time beside the accuracy; without, keeping it, with its controls."""
    if json_file is not None:
        return f"dovit bench {quote(str(path))}"
    controls = " --controls" if report.thresholds else ""
    return f"dovit eval {quote(str(path))} {quote(report.dataset)} --split {report.split}{controls} --json eval.json"
