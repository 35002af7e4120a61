"""The work of `dovit adapt`, step by step, from images to bundles that are written last, whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.adapt.adapt import (
    AdaptPlan,
    exported_draft,
    fits_of_tuned,
    fitted_to_images,
    original_draft,
    original_reference,
    write_adapted,
)
from dovit_deploy.adapt.comparison import ComparedWith, table_of
from dovit_deploy.adapt.distil import Distillery, DistilRequest
from dovit_deploy.adapt.division import Division, divided, divided_for_promise, images_for
from dovit_deploy.adapt.images import MOST, Opened, given_images
from dovit_deploy.adapt.network import adapted_checkpoint
from dovit_deploy.adapt.report import AdaptReport, DistilEntry, GateEntry, TableEntry, domain_doubt
from dovit_deploy.adapt.thresholds import ThresholdChoice, chosen_thresholds
from dovit_deploy.adapt.unlabelled import UnlabelledSet
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import UnitKind
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.images import CalibrationImages, SplitImages
from dovit_deploy.calibrate.units import units_of
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.claims import remove
from dovit_deploy.commands import console
from dovit_deploy.commands.calibrate import units_line
from dovit_deploy.commands.smaller_input import smaller_inputs
from dovit_deploy.commands.train import progress_note
from dovit_deploy.errors import Interrupted
from dovit_deploy.export.plan import ExportPlan
from dovit_deploy.files import working_folder
from dovit_deploy.printing import plural
from dovit_deploy.runtime.session import Session


@dataclass(frozen=True)
class AdaptRequest:
    """What the flags ask for, beside the network."""

    given: str
    """IMAGES."""
    limit: int | None
    labelled: SplitImages | None
    distil: DistilRequest | None
    """None: the network stays as it is."""
    original: ExportPlan | None
    """Of the network as it was given, where that is kept."""
    promised: DisagreeBudget | None
    unit: UnitKind | None
    frame_rate: float | None
    quiet: bool


@dataclass(frozen=True)
class Adapted:
    """What was made."""

    opened: Opened
    report: AdaptReport
    bundle: Bundle


def adapted(plan: AdaptPlan, wanted: AdaptRequest) -> Adapted:
    """Adapt, choose thresholds, compare; bundles are written last, whole.

    Raises:
        CheckError: what is to be promised cannot be.
        Interrupted: the user asked to stop while a network was fine-tuned, or after it; the state is saved.
        DovitError: whatever the steps find wrong with what was given.
    """
    target = plan.export.output
    with working_folder(target) as folder, console.progress("reading images", quiet=wanted.quiet) as progress:
        limit = images_for(wanted.promised, MOST) if wanted.limit is None else wanted.limit
        opened = given_images(wanted.given, limit=limit, folder=folder, advance=progress.advance)
        division = _division(opened, wanted)
        distillery = _distillery(plan, opened, division, wanted, progress)
        with _going_on_later(distillery, quiet=wanted.quiet):
            return _finished(plan, wanted, opened, division, distillery, folder, progress)


def _finished(
    plan: AdaptPlan,
    wanted: AdaptRequest,
    opened: Opened,
    division: Division,
    distillery: Distillery | None,
    folder: Path,
    progress: console.ProgressDisplay,
) -> Adapted:
    """From images that are divided to what is written."""
    images, example = opened.images, division.fitted[0]
    made = _network(plan, opened, division, distillery, folder, progress)
    draft = exported_draft(plan, made.checkpoint, images, example, folder, progress=progress)
    kept = None
    if wanted.original is not None:
        kept = original_draft(wanted.original, images, example, folder, progress=progress)
    original = kept
    if made.distilled is not None and kept is None:
        original = original_reference(plan, folder)
    with ExitStack() as stack:
        session = stack.enter_context(Session(draft))
        smaller = stack.enter_context(smaller_inputs(original or draft, threads=None))
        progress.begin("choosing thresholds", unit="images")
        choice = chosen_thresholds(
            session, division.judged, promised=wanted.promised, units=division.units, progress=progress
        )
        given = None
        if original is not None:
            # Without graphs of its own it is run in PyTorch, from which they would differ by rounding alone.
            given = stack.enter_context(Session(original, engine="torch" if kept is None else "onnxruntime"))
        rivals = ComparedWith.of(
            choice.calibration, smaller=smaller.sessions, left_out=smaller.left_out, original=given
        )
        tables = _tables(session, rivals, division, wanted.labelled, progress)
    original_path, overwrite = None, plan.export.overwrite
    with ExitStack() as undone:
        if kept is not None and wanted.original is not None:
            # First, so that whoever finds the adapted bundle finds both; alone it would be in the way of `--resume`.
            original_path = write_adapted(kept, None, wanted.original.output, overwrite=overwrite).path
            undone.callback(remove, original_path)
        bundle = write_adapted(draft, choice.calibration, plan.export.output, overwrite=overwrite)
        undone.pop_all()
    report = _report(opened, division, made, choice, tables, original_path)
    console.remarks((f"note: {doubt}" for doubt in report.doubts), quiet=wanted.quiet)
    if distillery is not None:
        distillery.folder.remove()
    return Adapted(opened, report, bundle)


@contextmanager
def _going_on_later(distillery: Distillery | None, *, quiet: bool) -> Iterator[None]:
    """Say of an interruption or an error that what was done is kept, where it is."""
    try:
        yield
    except Interrupted:
        # It has said so itself.
        raise
    except Exception:
        # Also one that a library made of an interruption.
        if distillery is not None:
            console.remark(f"{distillery.folder.path} keeps what was done; --resume goes on", quiet=quiet)
        raise
    except KeyboardInterrupt:
        if distillery is None:
            raise
        raise Interrupted(
            f"interrupted; {distillery.folder.path} keeps what was done, and the same command with --resume goes on"
        ) from None


# What is there before the work.


def _division(opened: Opened, wanted: AdaptRequest) -> Division:
    """What each image is for; whatever is to be said of that is said."""
    images, quiet = opened.images, wanted.quiet
    if wanted.promised is None:
        console.remarks(opened.remarks(), quiet=quiet)
        return divided(images)
    units = units_of(images.recorded, asked=wanted.unit, rate=wanted.frame_rate)
    console.remark(units_line(units), quiet=quiet)
    return divided_for_promise(images, wanted.promised, units, more=len(images) + len(opened.failed) < opened.total)


def _distillery(
    plan: AdaptPlan, opened: Opened, division: Division, wanted: AdaptRequest, progress: console.ProgressDisplay
) -> Distillery | None:
    """A distillation that is ready, where one is asked for."""
    if wanted.distil is None:
        return None
    progress.begin("checking images and speed", unit="images")
    data = UnlabelledSet(opened.images, division.fitted, plan.export.manifest)
    return Distillery.prepare(
        plan.export, plan.dense, data, wanted.distil, remark=lambda text: console.remark(text, quiet=wanted.quiet)
    )


# The network.


@dataclass(frozen=True)
class _Network:
    """The network with its gates."""

    checkpoint: Checkpoint
    fits: tuple[GateEntry, ...]
    distilled: DistilEntry | None


def _network(
    plan: AdaptPlan,
    opened: Opened,
    division: Division,
    distillery: Distillery | None,
    folder: Path,
    progress: console.ProgressDisplay,
) -> _Network:
    """Gates and lenses, fitted to the network as it is, and the network fine-tuned where that is asked for."""
    images, fitted = opened.images, division.fitted
    found = None if distillery is None else distillery.folder.fitted()
    parts, fits = found or fitted_to_images(plan, images, fitted, folder, progress=progress)
    if distillery is None:
        return _Network(adapted_checkpoint(plan.dense, plan.spec, parts), fits, None)
    if found is None:
        distillery.folder.keep_fitted(parts, fits)
    progress.begin("fine-tuning", 1.0, unit="%")
    checkpoint, entry = distillery.distilled(
        parts, report=lambda now: progress.reach(now.progress, note=progress_note(now))
    )
    # Gates have learnt, too, and are surer or less sure of the same images than before.
    fits = fits_of_tuned(checkpoint, plan, images, fitted, folder, progress=progress)
    return _Network(checkpoint, fits, entry)


# What is measured and said.


def _tables(
    session: Session,
    rivals: ComparedWith,
    division: Division,
    labelled: SplitImages | None,
    progress: console.ProgressDisplay,
) -> tuple[TableEntry, ...]:
    """Of the held-out images, and of those with labels."""
    parts: list[tuple[CalibrationImages, Sequence[int]]] = [(division.judged, division.held_out)]
    if labelled is not None:
        parts.append((labelled, range(len(labelled.stems))))
    tables = []
    for images, indices in parts:
        progress.begin(f"comparing on {plural(len(indices), 'image')} of {images.name}", len(indices))
        tables.append(table_of(session, images, indices, rivals, advance=progress.advance))
    return tuple(tables)


def _report(
    opened: Opened,
    division: Division,
    made: _Network,
    choice: ThresholdChoice,
    tables: tuple[TableEntry, ...],
    original: Path | None,
) -> AdaptReport:
    count, dense, calibration = len(division.fitted), tables[0].dense, choice.calibration
    return AdaptReport(
        images=opened.images.name,
        taken=len(opened.images),
        total=opened.total,
        failed=opened.failed,
        fitted=count,
        gates=made.fits,
        thresholds=None if calibration is None else calibration.chosen.thresholds,
        refusal=choice.refusal,
        doubts=tuple(filter(None, (domain_doubt(table, made.fits, fitted=count) for table in tables))),
        tables=tables,
        budget=choice.budget,
        promise=None if calibration is None else calibration.test,
        distilled=made.distilled,
        dense_agreement=None if dense is None else dense.agreement,
        dense_agreement_interval=None if dense is None else dense.agreement_interval,
        original=None if original is None else str(original),
    )
