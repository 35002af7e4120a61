"""`dovit eval BUNDLE DATASET`: how right the deployed bundle is, dense against dynamic, with controls and intervals."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import console, options, parse
from dovit_deploy.commands.table import show_table

if TYPE_CHECKING:
    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.measure.evaluation import ControlResult, EvalReport, Quality, Spread
    from dovit_deploy.runtime.session import Session


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="NAME.dovit.")],
    dataset: Annotated[str, typer.Argument(help="Folder of a data set; 'scenes': rendered street scenes.")],
    split: Annotated[
        str, typer.Option(metavar="NAME[:[-]PREFIX]", help="Split; with PREFIX only images whose names start so.")
    ] = "val",
    engine: options.EngineName = "onnxruntime",
    precision: options.Precision = None,
    threshold: options.Threshold = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also random, first-gate and oracle stopping, and smaller inputs.")
    ] = False,
    threads: options.Threads = None,
    cuda_memory: options.CudaMemory = None,
    trust_engine: options.TrustEngine = False,
    json_file: options.JsonFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure the accuracy of the deployed bundle on labelled images, dense against dynamic.

    Metrics are percent, of one confusion matrix over the set; void counts nowhere. The drop's interval is a paired
    block bootstrap. Random and oracle stop as many tokens of each image at each gate as the rule does: drawn, or those
    first whose gate says what the dense model will. Layouts: classes.json with images/ and labels/, SegNet's CamVid,
    Cityscapes, ADE20K.
    """
    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.measure.datasets import dataset_from_path
    from dovit_deploy.measure.evaluate import check_classes, measure_set
    from dovit_deploy.measure.evaluation_report import report_from_measured
    from dovit_deploy.runtime.gate_inputs import thresholds_from
    from dovit_deploy.runtime.session import Session

    values, wanted = parse.thresholds(threshold), EngineOptions(cuda_memory, trust_engine)
    console.check_writable(json_file)
    opened = Bundle.open(bundle)
    limits = thresholds_from(None, opened.manifest)
    if values is not None:
        limits = thresholds_from(values[0] if len(values) == 1 else values, opened.manifest)
    data = dataset_from_path(dataset, split)
    check_classes(data.classes, opened.manifest)
    with (
        Session(opened, engine=engine, precision=precision, threads=threads, options=wanted) as session,
        _smaller(opened, wanted=controls, threads=threads, quiet=quiet) as smaller,
    ):
        with console.progress_bar(total=len(data), quiet=quiet) as advance:
            measured = measure_set(
                session,
                data,
                thresholds=None if values is None else limits,
                controls=controls,
                smaller=smaller,
                advance=advance,
            )
        report = report_from_measured(
            measured,
            session,
            dataset=dataset,
            split=split,
            thresholds=limits,
            controls=controls,
            smaller=smaller,
        )
    _show(report, opened, verbose=verbose)
    console.write_json(json_file, report.model_dump(mode="json"))
    console.next_command(_next(report, opened.path, json_file), quiet=quiet)


# The verb's name; a function defined as `eval` would hide Python's own.
evaluate.__name__ = "eval"


def _smaller(
    bundle: Bundle, *, wanted: bool, threads: int | None, quiet: bool
) -> AbstractContextManager[tuple[Session, ...]]:
    """Sessions at smaller inputs where `--controls` wants them and they can be had."""
    from dovit_deploy.commands.smaller_input import reason_against, smaller_sessions

    if not wanted:
        return nullcontext(())
    reason = reason_against(bundle)
    if reason is not None:
        console.remark(f"dense at smaller inputs is left out: {reason}", quiet=quiet)
        return nullcontext(())
    return smaller_sessions(bundle, threads=threads)


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
