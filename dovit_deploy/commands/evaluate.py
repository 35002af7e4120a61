"""`dovit eval BUNDLE DATASET`: how right the deployed bundle is, dense against dynamic, with controls and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.datasets.classification import LabelledImages
    from dovit_deploy.datasets.dataset import Dataset
    from dovit_deploy.measure.report import (
        Accuracy,
        ClassifierReport,
        ControlResult,
        EvalReport,
        PictureRow,
        Quality,
        Spread,
    )
    from dovit_deploy.runtime.session import Session


# What `dovit eval` was asked for, understood and checked against the bundle.


@dataclass(frozen=True)
class EvalRequest:
    """The arguments that every task's evaluation takes."""

    dataset: str
    """As the user named it."""
    split: str
    thresholds: npt.NDArray[np.float32]
    """(gates, K): the user's, or the bundle's own."""
    chosen: bool
    """The thresholds are the user's."""
    controls: bool
    json_file: Path | None
    quiet: bool
    verbose: bool

    @property
    def given_thresholds(self) -> npt.NDArray[np.float32] | None:
        """The user's thresholds; None where the bundle's own are meant."""
        return self.thresholds if self.chosen else None


# `dovit eval` of a segmentation bundle: its report on stdout.


def segmentation_evaluation(bundle: Bundle, request: EvalRequest) -> Callable[[Session, Sequence[Session]], None]:
    """Open the data set; what is returned measures mIoU, prints the report and writes it.

    Raises:
        DatasetError: a fault in the data set, or one of other classes.
    """
    from dovit_deploy.datasets.open import dataset_from_path
    from dovit_deploy.measure.evaluate import check_classes

    data = dataset_from_path(request.dataset, request.split)
    check_classes(data.classes, bundle.manifest)
    return partial(_measure, bundle, data, request)


def _measure(bundle: Bundle, data: Dataset, request: EvalRequest, session: Session, smaller: Sequence[Session]) -> None:
    from dovit_deploy.measure.evaluate import measure_set
    from dovit_deploy.measure.report import report_from_measured

    with console.progress(total=len(data), quiet=request.quiet) as shown:
        measured = measure_set(
            session,
            data,
            thresholds=request.given_thresholds,
            controls=request.controls,
            smaller=smaller,
            advance=shown.advance,
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


# `dovit eval` of a classifier: top-1 and top-5, dense against dynamic, on stdout.

NO_DENSE = "the bundle has no dense form: nothing to lose against"


def classifier_evaluation(bundle: Bundle, request: EvalRequest) -> Callable[[Session, Sequence[Session]], None]:
    """Open the data set; what is returned measures top-1 and top-5, prints the report and writes it.

    Raises:
        DatasetError: a fault in the data set, or one of other classes.
    """
    from dovit_deploy.datasets.open import labelled_images_from_path
    from dovit_deploy.measure.evaluate import check_picture_classes

    data = labelled_images_from_path(request.dataset, request.split)
    check_picture_classes(data, bundle.manifest)
    return partial(_evaluate_classifier_measure, bundle, data, request)


def _evaluate_classifier_measure(
    bundle: Bundle, data: LabelledImages, request: EvalRequest, session: Session, smaller: Sequence[Session]
) -> None:
    from dovit_deploy.measure.evaluate import measure_pictures
    from dovit_deploy.measure.report import report_from_pictures

    if request.controls:
        console.remark(
            "random, first-gate and oracle stopping are left out: a classifier has no gates whose decisions could be "
            "replayed",
            quiet=request.quiet,
        )
    with console.progress(total=len(data), quiet=request.quiet) as shown:
        measured = measure_pictures(
            session, data, thresholds=request.given_thresholds, smaller=smaller, advance=shown.advance
        )
    report = report_from_pictures(
        measured,
        session,
        dataset=request.dataset,
        split=request.split,
        thresholds=request.thresholds,
        controls=request.controls,
        smaller=smaller,
    )
    _evaluate_classifier_show(report, bundle, data, verbose=request.verbose)
    console.write_json(request.json_file, report.model_dump(mode="json"))
    console.next_command(_evaluate_classifier_next(report, bundle.path, request.json_file), quiet=request.quiet)


def _evaluate_classifier_show(report: ClassifierReport, bundle: Bundle, data: LabelledImages, *, verbose: bool) -> None:
    size = bundle.manifest.spec.size
    images = "1 image" if report.images == 1 else f"{report.images} images"
    title = (
        f"{bundle.path.name}, {size[0]}x{size[1]}, {report.engine} {report.precision}: "
        f"{report.dataset} {report.split}, {images}"
    )
    headers = ("run", "top-1", "top-5", "drop", "95 % interval", "GMACs", "saved")
    show_table(title, headers, _table(report), right=range(1, 7))
    console.result("")
    for line in evaluate_classifier_summary_lines(report, data):
        console.result(line)
    if verbose:
        _evaluate_classifier_show_images(report.per_image, bundle)


def _table(report: ClassifierReport) -> list[tuple[str, ...]]:
    dynamic = report.dynamic
    rows = [] if report.dense is None else [_evaluate_classifier_row("dense", report.dense, None, None, None)]
    rows.append(_evaluate_classifier_row("dynamic", dynamic, dynamic.drop, dynamic.drop_interval, dynamic.flops_saved))
    for small in () if report.controls is None else report.controls.smaller_input:
        name = f"dense at {small.size[0]}x{small.size[1]}"
        rows.append(_evaluate_classifier_row(name, small, small.drop, small.drop_interval, small.flops_saved))
    return rows


def _evaluate_classifier_row(
    name: str, entry: Accuracy, drop: float | None, interval: tuple[float, float] | None, saved: float | None
) -> tuple[str, ...]:
    return (
        name,
        f"{entry.top1:.2f}",
        f"{entry.top5:.2f}",
        "" if drop is None else f"{drop:.2f}",
        "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        f"{entry.gmacs:.3f}",
        "" if saved is None else f"{saved:.1%}",
    )


def evaluate_classifier_summary_lines(report: ClassifierReport, data: LabelledImages) -> list[str]:
    """What the table has no column for: agreement with the dense run, tokens, and what the numbers of classes mean."""
    dynamic, boot = report.dynamic, report.bootstrap
    kept = dynamic.spread["tokens"]
    assert isinstance(kept, tuple)
    counts = " -> ".join(f"{entry.mean:.0f}" for entry in kept)
    against = NO_DENSE if dynamic.agreement is None else f"same class as dense: {dynamic.agreement:.1f} %"
    return [
        against,
        f"tokens: {counts}",
        f"classes numbered by {data.order}",
        *(() if dynamic.drop is None else (f"interval: single pictures, {boot.resamples} resamples",)),
    ]


def _evaluate_classifier_show_images(rows: Sequence[PictureRow], bundle: Bundle) -> None:
    names = [entry.name for entry in bundle.manifest.classes]
    cells = [
        (
            row.image,
            names[row.label],
            "-" if row.top_dense is None else names[row.top_dense[0]],
            names[row.top_dynamic[0]],
            " -> ".join(map(str, row.tokens.kept)),
        )
        for row in rows
    ]
    console.result("")
    show_table("image by image", ("image", "label", "dense", "dynamic", "tokens"), cells)


def _evaluate_classifier_next(report: ClassifierReport, path: Path, json_file: Path | None) -> str:
    """With the report kept on file, the time beside the accuracy; without, keeping it."""
    if json_file is not None:
        return f"dovit bench {quote(str(path))}"
    return f"dovit eval {quote(str(path))} {quote(report.dataset)} --split {quote(report.split)} --json eval.json"


if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.runtime.session import Session

    Measure = Callable[[Session, Sequence[Session]], None]
    Evaluation = Callable[[Bundle, EvalRequest], Measure]
    """Opens and checks the data set before an engine is loaded."""


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="NAME.dovit.")],
    dataset: Annotated[str, typer.Argument(help="Folder of a data set; 'scenes': rendered street scenes.")],
    split: Annotated[
        str, typer.Option(metavar="NAME[:[-]PREFIX]", help="Split; with PREFIX only images whose names start so.")
    ] = "val",
    engine: arguments.EngineName = "onnxruntime",
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also random, first-gate and oracle stopping, and smaller inputs.")
    ] = False,
    threads: arguments.Threads = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Measure the accuracy of the deployed bundle on labelled images, dense against dynamic.

    Metrics are percent over the whole set, of label maps from one confusion matrix in which void counts nowhere. The
    drop's interval is a paired bootstrap, of blocks of neighbouring images for label maps. Random and oracle stopping
    (models with gates) stop as many tokens of each image at each gate as the rule does: drawn, or those first whose
    gate says what the dense model will. Layouts: classes.json with images/ and labels/, SegNet's CamVid, Cityscapes,
    ADE20K; for classifiers SPLIT/CLASS/image, as ImageNet's.
    """
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.runtime.settings import thresholds_from

    values, wanted = arguments.thresholds_or_one(threshold), EngineOptions(cuda_memory, trust_engine)
    console.check_writable(json_file)
    opened = Bundle.open(bundle)
    limits = thresholds_from(values, opened.manifest)
    request = EvalRequest(dataset, split, limits, values is not None, controls, json_file, quiet, verbose)
    measure = _evaluation(opened.manifest)(opened, request)
    with (
        Session(opened, engine=engine, precision=precision, threads=threads, options=wanted) as session,
        _smaller(opened, wanted=controls, threads=threads, quiet=quiet) as smaller,
    ):
        measure(session, smaller)


def _evaluation(manifest: Manifest) -> Evaluation:
    """What opens the data set of this task and measures; raises InputError where there is nothing to be right about."""

    evaluations: dict[str, Evaluation] = {
        "segmentation": segmentation_evaluation,
        "classification": classifier_evaluation,
    }
    if manifest.task not in evaluations:
        raise InputError(f"{manifest.name} is a backbone without a head (task {manifest.task}): it has no accuracy")
    return evaluations[manifest.task]


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
