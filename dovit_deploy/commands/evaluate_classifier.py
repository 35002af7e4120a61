"""`dovit eval` of a classifier: top-1 and top-5, dense against dynamic, on stdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from dovit_deploy.commands import console
from dovit_deploy.commands.eval_request import EvalRequest
from dovit_deploy.commands.table import show_table

if TYPE_CHECKING:
    from dovit_deploy.bundle.directory import Bundle
    from dovit_deploy.measure.classifier_report import Accuracy, ClassifierReport, PictureRow
    from dovit_deploy.measure.labelled_pictures import LabelledPictures
    from dovit_deploy.runtime.session import Session

NO_DENSE = "the bundle has no dense form: nothing to lose against"


def classifier_evaluation(bundle: Bundle, request: EvalRequest) -> Callable[[Session, Sequence[Session]], None]:
    """Open the data set; what is returned measures top-1 and top-5, prints the report and writes it.

    Raises:
        DatasetError: a fault in the data set, or one of other classes.
    """
    from dovit_deploy.measure.classifier_evaluation import check_picture_classes
    from dovit_deploy.measure.datasets import labelled_pictures_from_path

    data = labelled_pictures_from_path(request.dataset, request.split)
    check_picture_classes(data, bundle.manifest)
    return partial(_measure, bundle, data, request)


def _measure(
    bundle: Bundle, data: LabelledPictures, request: EvalRequest, session: Session, smaller: Sequence[Session]
) -> None:
    from dovit_deploy.measure.classifier_evaluation import measure_pictures
    from dovit_deploy.measure.classifier_report import report_from_pictures

    if request.controls:
        console.remark(
            "random, first-gate and oracle stopping are left out: a classifier has no gates whose decisions could be "
            "replayed",
            quiet=request.quiet,
        )
    with console.progress_bar(total=len(data), quiet=request.quiet) as advance:
        measured = measure_pictures(
            session, data, thresholds=request.given_thresholds, smaller=smaller, advance=advance
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
    _show(report, bundle, data, verbose=request.verbose)
    console.write_json(request.json_file, report.model_dump(mode="json"))
    console.next_command(_next(report, bundle.path, request.json_file), quiet=request.quiet)


def _show(report: ClassifierReport, bundle: Bundle, data: LabelledPictures, *, verbose: bool) -> None:
    size = bundle.manifest.spec.size
    images = "1 image" if report.images == 1 else f"{report.images} images"
    title = (
        f"{bundle.path.name}, {size[0]}x{size[1]}, {report.engine} {report.precision}: "
        f"{report.dataset} {report.split}, {images}"
    )
    headers = ("run", "top-1", "top-5", "drop", "95 % interval", "GMACs", "saved")
    show_table(title, headers, _table(report), right=range(1, 7))
    console.result("")
    for line in summary_lines(report, data):
        console.result(line)
    if verbose:
        _show_images(report.per_image, bundle)


def _table(report: ClassifierReport) -> list[tuple[str, ...]]:
    dynamic = report.dynamic
    rows = [] if report.dense is None else [_row("dense", report.dense, None, None, None)]
    rows.append(_row("dynamic", dynamic, dynamic.drop, dynamic.drop_interval, dynamic.flops_saved))
    for small in () if report.controls is None else report.controls.smaller_input:
        name = f"dense at {small.size[0]}x{small.size[1]}"
        rows.append(_row(name, small, small.drop, small.drop_interval, small.flops_saved))
    return rows


def _row(
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


def summary_lines(report: ClassifierReport, data: LabelledPictures) -> list[str]:
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


def _show_images(rows: Sequence[PictureRow], bundle: Bundle) -> None:
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


def _next(report: ClassifierReport, path: Path, json_file: Path | None) -> str:
    """With the report kept on file, the time beside the accuracy; without, keeping it."""
    if json_file is not None:
        return f"dovit bench {quote(str(path))}"
    return f"dovit eval {quote(str(path))} {quote(report.dataset)} --split {quote(report.split)} --json eval.json"
