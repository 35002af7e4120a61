"""`dovit run SOURCE`: images or video in; overlay, masks, tokens and a truthful report out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.closing import bench_command, closing_lines, drift_line, noun_of
from dovit_deploy.commands.run_flags import (
    audits_of,
    checked_action,
    chosen_engine,
    kinds_of,
    numbered_threads,
    opened_bundle,
    painted_and_page,
    settings_of,
    settings_within,
    windows_of,
)
from dovit_deploy.credentials import masked
from dovit_deploy.engines.registry import AUTO, engine_entry
from dovit_deploy.errors import Interrupted, OutputFailed, PartialFailure, UsageError
from dovit_deploy.printing import plural

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.runtime.audit import DriftAction, DriftAlarm
    from dovit_deploy.runtime.between import Between
    from dovit_deploy.runtime.run import RunOutcome, RunPlan
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.sources.ahead import FramesAhead
    from dovit_deploy.sources.source import Source


def run(
    source: Annotated[str, typer.Argument(help="Image, folder, glob, video, camera index or stream URL.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; default: runs/<stem>.")] = None,
    bundle: arguments.OptionalBundle = None,
    engine: arguments.EngineOrAuto = AUTO,
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    classes: arguments.OtherNames = None,
    dense: arguments.StopNothing = False,
    deadline_ms: arguments.DeadlineMs = None,
    audit: arguments.AuditEvery = None,
    on_drift: arguments.OnDrift = None,
    save: arguments.SaveKinds = None,
    no_legend: arguments.NoLegend = False,
    overwrite: arguments.Overwrite = False,
    recursive: arguments.Recursive = False,
    max_frames: Annotated[int | None, typer.Option(min=1, max=10**9, help="Stop after this many frames.")] = None,
    every: arguments.Every = 1,
    hold: Annotated[bool, typer.Option("--hold", help="With --every: the others take its answer, and stay.")] = False,
    warp: Annotated[bool, typer.Option("--warp", help="The same, the answer moved along with the image.")] = False,
    start: Annotated[float | None, typer.Option(max=1e9, help="Seconds into the video to begin at.")] = None,
    end: Annotated[float | None, typer.Option(max=1e9, help="Seconds into the video to stop before.")] = None,
    threads: arguments.Threads = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    max_pixels: arguments.MaxPixels = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Segment or classify images or video; report latency, tokens and FLOPs saved, frame by frame."""
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.runtime.auto import Wanted
    from dovit_deploy.runtime.outputs import KINDS
    from dovit_deploy.runtime.run import RunPlan
    from dovit_deploy.sources.ahead import FramesAhead
    from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS
    from dovit_deploy.sources.open import open_source

    # What is wrong with the flags alone is found before anything is opened.
    action = checked_action(audit, on_drift, dense=dense, threshold=threshold, deadline_ms=deadline_ms)
    between = _between(every, on_drift, hold=hold, warp=warp)
    step, runs = _steps(every, between)
    named = None if save is None else arguments.names(save, option="--save", allowed=KINDS)
    thresholds = arguments.thresholds_or_one(threshold)
    path = arguments.bundle_path(bundle, quiet=quiet)
    most, timed, inputs = max_pixels or DEFAULT_MAX_PIXELS, deadline_ms is not None, (source, path, classes)
    folder = _output_folder(source, output, inputs=inputs, overwrite=overwrite)
    targets.claim_report(json_file, inputs=inputs, outputs=(folder,))
    with open_source(
        source, max_pixels=most, every=step, max_frames=max_frames, start=start, end=end, recursive=recursive
    ) as frames:
        _refuse_inputs(folder, frames)
        opened = _opened(path, classes, between, frames)
        kinds = kinds_of(named, opened.manifest, video=frames.video is not None, quiet=quiet)
        painted, page = painted_and_page(kinds, source)
        settings = settings_of(opened.manifest, thresholds, dense=dense, deadline=timed)
        ahead, options = FramesAhead(frames), EngineOptions(cuda_memory, trust_engine)
        audits = audits_of(opened, settings, audit, action, own=threshold is None, stream=frames.kind != "images")
        sizes = _images(frames, action), windows_of(opened.manifest, frames, ahead)
        given = arguments.thresholds(threshold), precision, numbered_threads(threads, deadline=timed)
        wanted = Wanted(settings, *given, *sizes, options, deadline=timed, audited=audit is not None, every=runs)
        chosen = chosen_engine(opened, engine, wanted, source=frames, ahead=ahead, quiet=quiet)
        with chosen.session as session:
            settings = settings_within(deadline_ms, chosen, windows=wanted.windows, quiet=quiet)
            plan = RunPlan(
                folder, overwrite, painted, settings, step, not no_legend, chosen.at_once, page, audits, between
            )
            outcome = _carried_out(session, frames, ahead, plan, quiet=quiet)
    _write_report(json_file, outcome)
    console.remarks((f"note: {line}" for line in (*frames.warnings, *outcome.warnings)), quiet=quiet)
    console.result(*closing_lines(outcome, plan, frames, opened.manifest))
    console.next_command(_next(outcome.summary, bundle, source, recursive, plan.at_once.threads), quiet=quiet)
    _raise_unless_complete(outcome, folder, frames)


def _carried_out(session: Session, source: Source, ahead: FramesAhead, plan: RunPlan, *, quiet: bool) -> RunOutcome:
    """The run itself, with its progress; Ctrl-C ends it in order."""
    from dovit_deploy.interruption import stop_requests
    from dovit_deploy.runtime.run import run_source

    unit = f"{noun_of(source)}s"
    with stop_requests() as stop, console.progress(total=source.count, unit=unit, quiet=quiet) as shown:
        return run_source(
            session, source, plan, stop=stop, advance=shown.advance, failed=_failed, frames=ahead, drifted=_drifted
        )


def _between(every: int, on_drift: str | None, *, hold: bool, warp: bool) -> Between | None:
    """Which frames do not run and what they take; None: all that are taken run."""
    from dovit_deploy.runtime.between import Between

    if not (hold or warp):
        return None
    if hold and warp:
        raise UsageError("--hold keeps an answer where it is and --warp moves it; give one of them")
    flag = "--hold" if hold else "--warp"
    if every < 2:
        raise UsageError(f"{flag} is for the frames between those that run; give --every N of 2 or more, too")
    if on_drift in ("tighten", "dense"):
        raise UsageError(f"{flag} gives frames the answer of another whatever it costs; --on-drift can only warn then")
    return Between(every, "hold" if hold else "warp")


def _steps(every: int, between: Between | None) -> tuple[int, int]:
    """One of how many frames is taken, and one of how many of these runs."""
    return (every, 1) if between is None else (1, every)


def _drifted(alarm: DriftAlarm) -> None:
    """Report an alarm, also to who wants quiet."""
    console.remark(drift_line(alarm), quiet=False)


def _failed(line: str) -> None:
    """Report a frame that could not be read, also to who wants quiet."""
    console.remark(line, quiet=False)


def _refuse_inputs(folder: Path, source: Source) -> None:
    """Raise UsageError where `folder` is or holds an input, also one that a glob found."""
    from dovit_deploy.files import refuse_inputs
    from dovit_deploy.sources.images import ImageSource

    refuse_inputs(folder, source.paths if isinstance(source, ImageSource) else ())


def _images(source: Source, action: DriftAction | None) -> int | None:
    """How many images there are, of which several may be run at once.

    None: one after another, as frames of a stream are, and images where an alarm of an audit changes what is run.
    """
    return source.count if source.kind == "images" and action in (None, "warn") else None


def _next(summary: Mapping[str, Any], bundle: Path | None, source: str, recursive: bool, threads: int | None) -> str:
    """The command that measures what ran; a precision is named where the engine would take another by itself."""
    engine, precision = summary["engine"], summary["precision"]
    named = None if precision == engine_entry(engine).precisions[0] else precision
    return bench_command(bundle, source, recursive=recursive, engine=engine, precision=named, threads=threads)


def _write_report(json_file: Path | None, outcome: RunOutcome) -> None:
    """The file of `--json`, before anything is printed: a reader that stops reading must not cost it."""
    # On a disk that is full, the error to come says what is where.
    with suppress(OutputFailed) if isinstance(outcome.ended, OutputFailed) else nullcontext():
        console.write_json(json_file, outcome.summary)


def _output_folder(source: str, output: Path | None, *, inputs: targets.Inputs, overwrite: bool) -> Path:
    """The folder for the results, claimed: as named, or `runs/<stem>`, numbered when taken and not to be replaced.

    Raises:
        UsageError: it exists and may not be replaced, another run writes there, or it is an input or holds one.
    """
    from dovit_deploy.runtime.outputs import foreign_in_run

    if output is None:
        # Also of an address or a glob something that can be a folder's name.
        named = masked(source).rsplit("@", 1)[-1].partition("?")[0] if "://" in source else source
        stem = Path(named.rstrip("/").rsplit("/", 1)[-1]).stem.strip("*?[]") or "run"
        output = Path("runs") / (f"camera{stem}" if source.isdecimal() else stem)
        # Whoever says --overwrite wants the results under this name and not under the next free one.
        if not overwrite:
            return targets.claim_free_folder(output)
    return targets.claim_folder(output, inputs=inputs, overwrite=overwrite, mark=foreign_in_run)


def _opened(path: Path, classes: Path | None, between: Between | None, source: Source) -> Bundle:
    """The bundle with the names of `--classes`; raises UsageError where frames cannot be filled in with its answers."""
    from dovit_deploy.runtime.between import refuse_unfit

    bundle = opened_bundle(path, classes)
    if between is not None:
        refuse_unfit(between, source, bundle.manifest)
    return bundle


def _raise_unless_complete(outcome: RunOutcome, folder: Path, source: Source) -> None:
    """Raise Interrupted or PartialFailure unless everything was done."""
    done = plural(outcome.summary["frames"], noun_of(source))
    # First, since an interrupt explains whatever else is missing.
    if outcome.summary["interrupted"] and outcome.ended is None:
        raise Interrupted(f"stopped after {done}; what was done is in {folder}")
    if outcome.ended is not None:
        raise type(outcome.ended)(f"{outcome.ended}; done until then: {done}, in {folder}") from outcome.ended
    if outcome.failures:
        raise PartialFailure(
            f"{plural(len(outcome.failures), 'input')} could not be read, the others are done: {folder}"
        )
    if source.ended_early:
        raise PartialFailure(f"{source.ended_early}; done until then: {done}, in {folder}")
