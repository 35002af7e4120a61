"""`dovit calibrate BUNDLE DATASET`: thresholds for a budget of accuracy, MACs or milliseconds; no re-export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy import packages
from dovit_deploy.commands import arguments, console, reports, targets
from dovit_deploy.commands.calibration_report import show_calibration
from dovit_deploy.errors import CheckError, OutputFailed, PackageMissing, UsageError
from dovit_deploy.printing import plural, quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.bundle.calibration import Calibration, UnitKind
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.bundle.parity import PrecisionParity
    from dovit_deploy.calibrate.budgets import Budget, DisagreeBudget
    from dovit_deploy.calibrate.images import CalibrationImages
    from dovit_deploy.calibrate.units import Units
    from dovit_deploy.datasets.summary import DataSummary
    from dovit_deploy.pages.page import Page
    from dovit_deploy.runtime.session import Session

DEFAULT_SPLIT = "val"


def calibrate(
    bundle: arguments.BundleFirst,
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="DATASET", help="Data set; a folder of images where no labels are needed."),
    ] = None,
    max_drop: arguments.MaxPoints = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", help="Save at least this fraction of the whole model's dense MACs."),
    ] = None,
    latency_ms: arguments.LatencyMs = None,
    max_disagree: arguments.MaxDisagree = None,
    confidence: arguments.Confidence = None,
    unit: arguments.UnitName = None,
    frame_rate: arguments.FrameNumbersPerSecond = None,
    recursive: arguments.Recursive = False,
    split: Annotated[str | None, typer.Option(help=f"Of the data set; default: {DEFAULT_SPLIT}.")] = None,
    classes: arguments.Classes = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="NEW.dovit", help="Default: the bundle itself changes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search and report, write no bundle.")] = False,
    json_file: arguments.JsonFile = None,
    report_file: arguments.PageFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Choose the thresholds of all gates for one budget; graphs and weights stay as they are.

    One half of the images is for the search, the other is held out: every image of the first is recorded once with
    nothing stopped, promising thresholds are predicted from that and really run, and those that are written have
    kept the budget on the held-out half. --max-disagree makes a promise about images like these, without labels:
    thresholds from cautious to bold are tested on two thirds of them, the last before the first that fails is written.
    Where there are labels, random and oracle stopping of as many tokens and dense runs at smaller inputs follow. All
    is saved in the bundle as calibration.json, and drawn. What it states that other precisions lose (parity.json) is
    measured anew.
    """
    from dovit_deploy.bundle.bundle import Bundle, write_calibrated
    from dovit_deploy.calibrate.calibrate import calibrate as calibrated
    from dovit_deploy.calibrate.units import units_of
    from dovit_deploy.commands.precisions import loss_lines
    from dovit_deploy.runtime.session import Session

    budget = _budget(max_drop, flops, latency_ms, max_disagree, confidence)
    kind = unit_kind(unit, frame_rate, max_disagree)
    named, labelled = arguments.bundle_and_dataset(bundle, dataset)
    path = arguments.bundle_path(named, quiet=quiet)
    inputs = (path, labelled, classes)
    _claim_output(output, inputs=inputs, in_place=None if dry_run else path)
    reports.claim(json_file, report_file, inputs=inputs, output=output)
    opened = Bundle.open(path)
    stated = _checked(opened, in_place=output is None and not dry_run)
    images = _images(labelled, split, classes, budget, recursive=recursive)
    summary = images.summary()
    console.remarks(summary.lines(), quiet=quiet)
    _check_classes(images, opened.manifest)
    units = units_of(images.recorded, asked=kind, rate=frame_rate)
    console.remarks([units_line(units)] if max_disagree is not None else [], quiet=quiet)
    images.check()
    # Settings are timed, so nothing may be drawn by another thread meanwhile.
    with Session(opened, threads=_threads(budget)) as session, console.progress(quiet=quiet, timed=True) as progress:
        timed = _timed(budget, session, progress, quiet=quiet)
        calibration = calibrated(session, images, timed, progress=progress, units=units)
        # Images without a labelled pixel have labels, and no mIoU.
        if calibration.chosen.miou is not None:
            calibration = _with_controls(calibration, opened, session, images, progress)
        losses = _losses(calibration, opened, images, progress, quiet=quiet) if stated and not dry_run else ()
    target = opened.path if output is None else output
    if not dry_run:
        with _shown_anyway(calibration, verbose=verbose, quiet=quiet):
            write_calibrated(opened, calibration, target, losses=losses)
    # The files come before the table: once its last line is printed they are there.
    console.write_json(json_file, _report(None if dry_run else target, summary, calibration))
    reports.write_page(report_file, None if report_file is None else _page(calibration, opened))
    plot = None if dry_run else _plot(calibration, target, quiet=quiet)
    show_calibration(calibration, verbose=verbose, quiet=quiet)
    if not dry_run:
        console.result(*loss_lines(losses), *map(str, filter(None, (target, plot))))
    console.next_command(_next(calibration, path if dry_run else output or path, classes, dry_run), quiet=quiet)


@contextmanager
def _shown_anyway(calibration: Calibration, *, verbose: bool, quiet: bool) -> Iterator[None]:
    """The search may have taken an hour: what it found is shown even if the block cannot write it."""
    try:
        yield
    except OutputFailed:
        show_calibration(calibration, verbose=verbose, quiet=quiet)
        raise


def _report(target: Path | None, summary: DataSummary, calibration: Calibration) -> dict[str, object]:
    """What `--json` gets; `target`: the bundle that was written."""
    return {
        "bundle": None if target is None else str(target.resolve()),
        "data": summary.model_dump(mode="json"),
        **calibration.model_dump(mode="json"),
    }


def _page(calibration: Calibration, bundle: Bundle) -> Page:
    from dovit_deploy.calibrate.calibration_page import page_from_calibration
    from dovit_deploy.machine import machine_facts, package_versions

    command, machine, versions = console.this_command(), machine_facts(), package_versions()
    return page_from_calibration(calibration, bundle=bundle.path, command=command, machine=machine, versions=versions)


def _next(calibration: Calibration, bundle: Path, classes: Path | None, dry_run: bool) -> str:
    """Measuring the calibrated bundle where there are labels, else using it."""
    shown = ",".join(f"{value:g}" for value in calibration.chosen.thresholds)
    given = f" --threshold {shown}" if dry_run else ""
    own = "" if classes is None else f" --classes {quote(str(classes))}"
    if calibration.split is None:
        return f"dovit run {arguments.PLACEHOLDER} --bundle {quote(str(bundle))}{given}"
    return (
        f"dovit eval {quote(str(bundle))} {quote(calibration.dataset)} --split {quote(calibration.split)}{own}{given}"
    )


def _budget(
    max_drop: float | None,
    flops: float | None,
    latency_ms: float | None,
    max_disagree: float | None,
    confidence: float | None,
) -> Budget:
    """The one budget that is given; raises UsageError for none or several."""
    from dovit_deploy.calibrate.budgets import DropBudget, FlopsBudget, LatencyBudget

    given = [value for value in (max_drop, flops, latency_ms, max_disagree) if value is not None]
    if len(given) != 1:
        raise UsageError(
            f"{plural(len(given), 'budget')} given, exactly one is needed: "
            "--max-drop POINTS, --flops FRACTION, --latency-ms MS, or --max-disagree E --confidence C"
        )
    promised = promised_budget(max_disagree, confidence)
    if promised is not None:
        return promised
    if max_drop is not None:
        return DropBudget(max_drop)
    if flops is not None:
        return FlopsBudget(flops)
    assert latency_ms is not None
    return LatencyBudget(latency_ms)


def promised_budget(max_disagree: float | None, confidence: float | None) -> DisagreeBudget | None:
    """What `--max-disagree` and `--confidence` promise; None without them; raises UsageError for one alone."""
    from dovit_deploy.calibrate.budgets import DisagreeBudget

    if max_disagree is None and confidence is None:
        return None
    if max_disagree is None or confidence is None:
        raise UsageError("--max-disagree E and --confidence C belong together; give both or neither")
    return DisagreeBudget(max_disagree, confidence)


def unit_kind(unit: str | None, frame_rate: float | None, max_disagree: float | None) -> UnitKind | None:
    """The kind of unit that is named; raises UsageError for a wrong name, and where nothing is promised."""
    from dovit_deploy.bundle.calibration import UNIT_KINDS

    if max_disagree is None and not (unit is None and frame_rate is None):
        raise UsageError("--unit and --frame-rate say what --max-disagree counts; other budgets take neither")
    named = next((kind for kind in UNIT_KINDS if kind == unit), None)
    if named is None and unit is not None:
        raise UsageError(f"--unit: '{unit}' given; allowed: {', '.join(UNIT_KINDS)}")
    return named


def units_line(units: Units) -> str:
    """What is counted, and why."""
    if units.said_by == "nobody":
        return (
            f"{units.named(units.count)}: nothing says when they were recorded, so each counts as independent; "
            "of frames of a video give --frame-rate HZ, or --unit drive"
        )
    return f"{units.named(units.count)} count as independent of each other, as the {units.said_by} says"


def _checked(bundle: Bundle, *, in_place: bool) -> bool:
    """Refuse now what can be refused, not after the search; whether the bundle states what other precisions lose."""
    from dovit_deploy.bundle.bundle import refuse_installed
    from dovit_deploy.calibrate.calibrate import refuse_without_gates

    refuse_without_gates(bundle.manifest)
    if in_place:
        refuse_installed(bundle)
    report = bundle.parity()
    return report is not None and bool(report.precisions)


def _threads(budget: Budget) -> int | None:
    """Of the session: a number where time is predicted, else as the engine likes."""
    from dovit_deploy.calibrate.budgets import LatencyBudget
    from dovit_deploy.runtime.latencies import numbered

    return numbered(None) if isinstance(budget, LatencyBudget) else None


def _timed(budget: Budget, session: Session, progress: console.ProgressDisplay, *, quiet: bool) -> Budget:
    """A budget of milliseconds with the latency model of this machine; others as they are."""
    from dovit_deploy.calibrate.budgets import LatencyBudget
    from dovit_deploy.runtime.latencies import latency_model_here

    if not isinstance(budget, LatencyBudget):
        return budget
    progress.begin("latency model")
    model = latency_model_here(session, remark=partial(console.remark, quiet=quiet))
    return budget.by(model, session.bundle.manifest.spec)


def _claim_output(output: Path | None, *, inputs: targets.Inputs, in_place: Path | None) -> None:
    """Claim the bundle that will be written: `output`, else `in_place`, the bundle itself; None where none will be."""
    from dovit_deploy.bundle.bundle import foreign_in_bundle

    if output is None:
        # Before it is opened: what is calibrated is what is replaced.
        if in_place is not None:
            targets.claim(in_place)
        return
    if output.suffix != ".dovit":
        raise UsageError(f"-o: '{output}' given; a bundle is called NAME.dovit")
    if output.exists():
        raise UsageError(f"{output} exists; choose another with -o, or leave -o out to change the bundle itself")
    targets.claim_folder(output, inputs=inputs, overwrite=False, mark=foreign_in_bundle)


def _images(
    path: Path, split: str | None, classes: Path | None, budget: Budget, *, recursive: bool
) -> CalibrationImages:
    """A labelled data set, or a folder of images where the budget needs no labels."""
    from dovit_deploy.calibrate.images import FolderImages, SplitImages, image_files
    from dovit_deploy.datasets.open import dataset_from_path

    # A folder of images has neither splits nor classes, so these flags name those of a data set.
    if split is None and classes is None and not budget.needs_labels and (recursive or image_files(path).taken):
        return FolderImages(path, recursive=recursive)
    split = split or DEFAULT_SPLIT
    return SplitImages(dataset_from_path(path, split, classes=classes), name=str(path), split=split)


def _check_classes(images: CalibrationImages, manifest: Manifest) -> None:
    from dovit_deploy.calibrate.images import SplitImages
    from dovit_deploy.measure.evaluate import check_classes

    if isinstance(images, SplitImages):
        check_classes(images.data, manifest)


def _with_controls(
    calibration: Calibration,
    bundle: Bundle,
    session: Session,
    images: CalibrationImages,
    progress: console.ProgressDisplay,
) -> Calibration:
    """What the chosen thresholds must beat, measured last."""
    from dovit_deploy.calibrate.controls import controls_of_choice
    from dovit_deploy.commands.smaller_input import smaller_inputs

    progress.begin("controls on held-out images")
    with smaller_inputs(bundle, threads=None) as smaller:
        controls = controls_of_choice(
            session,
            images,
            calibration,
            smaller=smaller.sessions,
            left_out=smaller.left_out,
            advance=progress.advance,
        )
    return calibration.model_copy(update={"controls": controls})


def _losses(
    calibration: Calibration,
    bundle: Bundle,
    images: CalibrationImages,
    progress: console.ProgressDisplay,
    *,
    quiet: bool,
) -> tuple[PrecisionParity, ...]:
    """What precisions below fp32 lose at the chosen thresholds, on held-out images."""
    from dovit_deploy.calibrate.images import PickedImages, indices_of, spread
    from dovit_deploy.commands.precisions import COMPARED
    from dovit_deploy.measure.precisions import measured_precisions

    numbers = indices_of(calibration, images, "check")
    try:
        return measured_precisions(
            bundle.calibrated(calibration),
            PickedImages(spread(numbers, COMPARED), images.image),
            progress=progress,
            remark=None,
        )
    except CheckError as error:
        # The search may have taken an hour, and its thresholds are right.
        console.remark(f"what other precisions lose is left out: {error}", quiet=quiet)
        return ()


def _plot(calibration: Calibration, target: Path, *, quiet: bool) -> Path | None:
    """Draw the trade-off beside the bundle, where matplotlib is installed; path of the plot."""
    from dovit_deploy.calibrate.plot import plot_path, save_plot

    try:
        packages.matplotlib_figure()
    except PackageMissing as missing:
        console.remark(f"no plot: {missing}", quiet=quiet)
        return None
    path = plot_path(target)
    save_plot(calibration, path)
    return path
