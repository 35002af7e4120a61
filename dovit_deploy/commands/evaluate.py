"""`dovit eval BUNDLE DATASET`: how right the deployed bundle is, dense against dynamic, with controls and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, reports
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import EnvironmentProblem, InputError, UsageError
from dovit_deploy.printing import plural, quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.datasets.classification import LabelledImages
    from dovit_deploy.datasets.dataset import Dataset
    from dovit_deploy.measure.against import SegmentationAgainstFp32
    from dovit_deploy.measure.decisions import Decisions
    from dovit_deploy.measure.eval_records import (
        Bootstrap,
        ClassificationReport,
        SegmentationControls,
        SegmentationReport,
        Spread,
    )
    from dovit_deploy.measure.eval_table import EitherReport
    from dovit_deploy.measure.evaluate import EvalPlan
    from dovit_deploy.pages.page import Page
    from dovit_deploy.runtime.session import Session


PositionFrom = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET[:SPLIT]",
        help="With --controls: where stopping by position learns from; default: the data set's split train.",
    ),
]
NO_DENSE = "the bundle has no dense form: nothing to lose against"


def evaluate(
    bundle: arguments.BundleFirst,
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET", help="Folder of a data set; 'rendered': rendered street scenes."),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME[:[-]PART]", help="Split; PART: a prefix of its images' names, or @LIST.txt.")
    ] = "val",
    engine: arguments.EngineName = "onnxruntime",
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    classes: arguments.Classes = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also other ways to stop as many tokens, and dense at smaller inputs.")
    ] = False,
    position_from: PositionFrom = None,
    threads: arguments.Threads = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    json_file: arguments.JsonFile = None,
    report_file: arguments.PageFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Measure the accuracy of the deployed bundle on labelled images, dense against dynamic.

    Metrics are percent over the whole set, of label maps from one confusion matrix in which void counts nowhere. The
    drop's interval is a paired bootstrap, for frames of drives over blocks of 10 seconds of recording; fewer than 8
    blocks give none. In another precision than
    fp32 the dense network also runs in fp32 (onnxruntime), and what is lost against that is reported, too. Controls of
    models with gates stop as many tokens of each image at each gate as the rule does: drawn at random, those that it
    stops most often elsewhere (position), as in another image, or those whose gate gives the dense class (oracle).
    Layouts: classes.json with images/ and labels/, SegNet's CamVid, Cityscapes, ADE20K, each with classes of its own
    where the folder holds a classes.json; for classifiers SPLIT/CLASS/image, as ImageNet's.
    """
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.commands.eval_controls import positions_for, rule_decisions, smaller_sessions
    from dovit_deploy.datasets.summary import summary_of
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.measure.controls import CONTROLS
    from dovit_deploy.measure.evaluate import EvalPlan, check_classes
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.runtime.settings import RunSettings

    thresholds, options = arguments.thresholds_or_one(threshold), EngineOptions(cuda_memory, trust_engine)
    named, folder = arguments.bundle_and_dataset(bundle, dataset)
    path, labelled = arguments.bundle_path(named, quiet=quiet), str(folder)
    inputs = (path, labelled, classes)
    reports.claim(json_file, report_file, inputs=inputs)
    opened = Bundle.open(path)
    if position_from is not None and not controls:
        raise UsageError(f"--position-from {position_from}: it is for the controls; give --controls, too")
    wanted = CONTROLS if controls else None
    settings = RunSettings.resolve(opened.manifest, thresholds=thresholds)
    # Faults of the data set are reported before an engine is loaded, which may take minutes.
    data = _labelled_set(opened.manifest, labelled, split, classes)
    summary = summary_of(data)
    console.remarks(summary.lines(), quiet=quiet)
    check_classes(data, opened.manifest)
    plan = EvalPlan(labelled, split, settings, wanted, summary)
    source = positions_for(plan, opened.manifest, data, position_from, classes=classes, quiet=quiet)
    with (
        Session(opened, engine=engine, precision=precision, threads=threads, options=options) as session,
        smaller_sessions(opened, plan, threads=threads, quiet=quiet) as smaller,
        _exact(session, threads=threads, quiet=quiet) as exact,
        console.progress(total=len(data), quiet=quiet) as progress,
    ):
        decisions = rule_decisions(session, data, plan, source, progress)
        report = _measured_report(session, data, plan, smaller, exact, decisions, progress)
        page = None if report_file is None else _page(session, data, plan, report)
    # Before anything is printed: a reader that stops reading (head) must not cost the report.
    console.write_json(json_file, report.model_dump(mode="json"))
    reports.write_page(report_file, page)
    _show(report, opened, data, verbose=verbose)
    how = {"--engine": None if engine == "onnxruntime" else engine, "--precision": precision}
    what = {"--classes": classes, "--threshold": threshold, "--position-from": position_from}
    console.next_command(_next(report, opened.path, json_file or report_file, how=how, what=what), quiet=quiet)


# The verb's name; a function defined as `eval` would hide Python's own.
evaluate.__name__ = "eval"


def _labelled_set(manifest: Manifest, dataset: str, split: str, classes: Path | None) -> Dataset | LabelledImages:
    """The data set, of the layout that the bundle's task needs."""
    from dovit_deploy.datasets.open import dataset_from_path, labelled_images_from_path
    from dovit_deploy.measure.eval_table import SCORES

    if manifest.task not in SCORES:
        raise InputError(f"{manifest.name} is a backbone without a head (task {manifest.task}): it has no accuracy")
    if manifest.task == "segmentation":
        return dataset_from_path(dataset, split, classes=classes)
    if classes is not None:
        raise UsageError("--classes is for label maps; a classifier's data set lists its classes in its own folder")
    return labelled_images_from_path(dataset, split)


@contextmanager
def _exact(session: Session, *, threads: int | None, quiet: bool) -> Iterator[Session | None]:
    """Beside a session of another precision one in fp32, whose dense answers are what can be lost."""
    from dovit_deploy.bundle.interface import FP32
    from dovit_deploy.runtime.session import Session

    if session.backend.precision == FP32 or not session.bundle.manifest.spec.has_dense:
        yield None
        return
    try:
        exact = Session(session.bundle, threads=threads)
    except EnvironmentProblem as problem:
        console.remark(f"the comparison with dense fp32 is left out: {problem}", quiet=quiet)
        yield None
        return
    with exact:
        yield exact


def _measured_report(
    session: Session,
    data: Dataset | LabelledImages,
    plan: EvalPlan,
    smaller: tuple[Session, ...],
    exact: Session | None,
    decisions: Decisions | None,
    progress: console.ProgressDisplay,
) -> EitherReport:
    from dovit_deploy.measure.evaluate import ClassificationTally, SegmentationTally
    from dovit_deploy.measure.evaluate import evaluate as measured
    from dovit_deploy.measure.report import classification_report, segmentation_report

    advance = progress.advance
    if session.bundle.manifest.task == "classification":
        answers = measured(session, data, ClassificationTally, plan, smaller=smaller, exact=exact, advance=advance)
        return classification_report(answers, session, plan)
    maps = measured(
        session, data, SegmentationTally, plan, smaller=smaller, exact=exact, decisions=decisions, advance=advance
    )
    return segmentation_report(maps, session, plan)


def _page(session: Session, data: Dataset | LabelledImages, plan: EvalPlan, report: EitherReport) -> Page:
    """The page, for which the worst images are run again."""
    from dovit_deploy.measure.eval_page import EvalPageFacts, page_from_eval
    from dovit_deploy.measure.eval_pictures import worst_pictures

    names = tuple(entry.name for entry in session.bundle.manifest.classes)
    worst = worst_pictures(session, data, report, plan.settings, names)
    facts = EvalPageFacts(console.this_command(), tuple(_lines(report, data)), names, worst)
    return page_from_eval(report, facts)


def _show(report: EitherReport, bundle: Bundle, data: Dataset | LabelledImages, *, verbose: bool) -> None:
    from dovit_deploy.measure.eval_records import SegmentationReport
    from dovit_deploy.measure.eval_table import SCORES, eval_headers, eval_rows

    size, scores = bundle.manifest.spec.size, SCORES[bundle.manifest.task]
    images = plural(report.images, "image")
    title = (
        f"{bundle.path.name}, {size[0]}x{size[1]}, {report.engine} {report.precision}: "
        f"{report.dataset} {report.split}, {images}"
    )
    headers = eval_headers(scores)
    show_table(title, headers, eval_rows(report, tuple(scores.values())), right=range(1, len(headers)))
    console.result("")
    console.result(*_lines(report, data))
    if verbose and isinstance(report, SegmentationReport):
        _show_classes(report)
        _show_segmentations(report)
    elif verbose:
        assert not isinstance(report, SegmentationReport)
        _show_classifications(report, [entry.name for entry in bundle.manifest.classes])


def _lines(report: EitherReport, data: Dataset | LabelledImages) -> list[str]:
    """What the table has no column for."""
    from dovit_deploy.datasets.classification import LabelledImages
    from dovit_deploy.measure.eval_records import SegmentationReport

    if isinstance(report, SegmentationReport):
        return segmentation_lines(report)
    assert isinstance(data, LabelledImages)
    return classification_lines(report, data.order)


def segmentation_lines(report: SegmentationReport) -> list[str]:
    """What the table has no column for: the worst class, the spread over the images, what the rule is worth."""
    dynamic = report.dynamic
    saved, tokens = dynamic.spread["flops_saved"], dynamic.spread["tokens"]
    assert not isinstance(saved, tuple) and isinstance(tokens, tuple)
    lines = [NO_DENSE]
    if dynamic.drop is not None:
        lines = [
            f"largest drop of a class: {dynamic.worst_class} {dynamic.worst_class_drop:z.2f}; "
            f"boundary drop {dynamic.boundary_drop:z.2f}"
        ]
    if report.against_fp32 is not None:
        lines += _against_lines(report.against_fp32)
    lines += [
        f"FLOPs saved per image: {_spread(saved, percent=True)}",
        f"tokens entering the last stage: {_spread(tokens[-1], percent=False)} of {tokens[0].mean:.0f}",
    ]
    if dynamic.drop is not None:
        lines.append(_interval_line(report.bootstrap))
    if report.controls is not None:
        efficiency = report.controls.gate_efficiency
        text = "none, the oracle is no better than chance" if efficiency is None else f"{efficiency:.2f}"
        lines.append(f"gate efficiency, (rule - random) / (oracle - random) at the same counts: {text}")
        lines += _gain_lines(report.controls)
    return lines


def _interval_line(boot: Bootstrap) -> str:
    """How the intervals were drawn, or why there are none."""
    from dovit_deploy.measure.intervals import FEWEST_BLOCKS

    if boot.seconds_per_block is None:
        drawn = f"{plural(boot.blocks, 'image')}, taken as independent"
    else:
        drawn = f"{plural(boot.blocks, 'block')} of {boot.seconds_per_block:g} s of recording"
    if boot.blocks < FEWEST_BLOCKS:
        return f"no intervals: {drawn}; at least {FEWEST_BLOCKS} are needed"
    return f"intervals: {drawn}, {plural(boot.resamples, 'resample')}"


def _gain_lines(controls: SegmentationControls) -> list[str]:
    """What the rule is worth beyond each control of the same counts, and where positions were learned."""
    named = (("random", controls.random), ("position", controls.position), ("another image's", controls.other))
    gains = (
        f"{name} {_with_interval(control.rule_gain, control.rule_gain_interval)}"
        for name, control in named
        if control is not None
    )
    lines = [f"mIoU of the rule less that of a control at the same counts: {', '.join(gains)}"]
    if controls.position_from is not None and controls.position_images is not None:
        lines.append(f"position: learned from {controls.position_from}, {plural(controls.position_images, 'image')}")
    return lines


def _against_lines(against: SegmentationAgainstFp32) -> list[str]:
    """What is lost against dense fp32, and how many answers are other ones."""
    from dovit_deploy.measure.metrics import BAND

    shares = {name: share for name, share in against.agreement_by_class.items() if share is not None}
    least = min(shares, key=lambda name: shares[name])
    contours = against.agreement_at_boundaries
    return [
        f"against dense {against.engine} fp32: mIoU drop {_with_interval(against.drop, against.drop_interval)}, "
        f"boundary drop {_with_interval(against.boundary_drop, against.boundary_drop_interval)}",
        f"same class as there: {against.agreement:.2f} % of the pixels"
        + ("" if contours is None else f", {contours:.2f} % within {BAND} pixels of a contour")
        + f"; the least of a class: {least} {shares[least]:.2f} %",
    ]


def _with_interval(drop: float, interval: tuple[float, float] | None) -> str:
    return f"{drop:z.2f}" + ("" if interval is None else f" ({interval[0]:z.2f} to {interval[1]:z.2f})")


def _spread(values: Spread, *, percent: bool) -> str:
    parts = (("min", values.min), ("p10", values.p10), ("mean", values.mean), ("p90", values.p90), ("max", values.max))
    return ", ".join(f"{name} {value:.1%}" if percent else f"{name} {value:.0f}" for name, value in parts)


def classification_lines(report: ClassificationReport, order: str) -> list[str]:
    """What the table has no column for: agreement with the dense run, tokens, and what the numbers of classes mean."""
    dynamic = report.dynamic
    kept = dynamic.spread["tokens"]
    assert isinstance(kept, tuple)
    against = report.against_fp32
    lines = [NO_DENSE if dynamic.agreement is None else f"same class as dense: {dynamic.agreement:.1f} %"]
    if against is not None:
        lines.append(
            f"against dense {against.engine} fp32: top-1 drop {_with_interval(against.drop, against.drop_interval)}, "
            f"same class {against.agreement:.1f} %"
        )
    lines += [
        f"tokens: {' -> '.join(f'{entry.mean:.0f}' for entry in kept)}",
        f"classes numbered by {order}",
    ]
    if dynamic.drop is not None:
        lines.append(_interval_line(report.bootstrap))
    return lines


def _show_classes(report: SegmentationReport) -> None:
    before = {} if report.dense is None else report.dense.iou
    same = {} if report.against_fp32 is None else report.against_fp32.agreement_by_class
    rows = []
    for name, dynamic in report.dynamic.iou.items():
        dense = before.get(name)
        drop = "" if dense is None or dynamic is None else f"{dense - dynamic:z.2f}"
        rows.append((name, _number(dense), _number(dynamic), drop, _number(same.get(name))))
    console.result("")
    headers = ("class", "dense", "dynamic", "drop", "as dense fp32")
    show_table("IoU per class, percent", headers, rows, right=range(1, 5))


def _show_segmentations(report: SegmentationReport) -> None:
    rows = [
        (
            row.image,
            " -> ".join(map(str, row.tokens.kept)),
            f"{row.flops_saved:z.1%}",
            _number(row.miou_dense),
            _number(row.miou_dynamic),
        )
        for row in report.per_image
    ]
    headers = ("image", "tokens per stage", "saved", "mIoU dense", "dynamic")
    console.result("")
    show_table("image by image", headers, rows, right=range(2, 5))


def _show_classifications(report: ClassificationReport, names: list[str]) -> None:
    rows = [
        (
            row.image,
            names[row.label],
            "-" if row.top_dense is None else names[row.top_dense[0]],
            names[row.top_dynamic[0]],
            " -> ".join(map(str, row.tokens.kept)),
        )
        for row in report.per_image
    ]
    console.result("")
    show_table("image by image", ("image", "label", "dense", "dynamic", "tokens"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _next(
    report: EitherReport, path: Path, written: Path | None, *, how: Mapping[str, object], what: Mapping[str, object]
) -> str:
    """With the report kept in a file, measuring time beside accuracy; without, keeping it, with its controls.

    Args:
        how: flags that say how the bundle is run, with their values; None: not given.
        what: those that say what is evaluated.
    """
    if written is not None:
        return f"dovit bench {quote(str(path))}{_flags(how)}"
    controls = " --controls" if report.thresholds else ""
    dataset, split = quote(report.dataset), quote(report.split)
    own = _flags({**what, **how})
    return f"dovit eval {quote(str(path))} {dataset} --split {split}{own}{controls} --json eval.json"


def _flags(given: Mapping[str, object]) -> str:
    return "".join(f" {flag} {quote(str(value))}" for flag, value in given.items() if value is not None)
