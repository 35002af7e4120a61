"""`dovit batch SOURCE... -o DIR`: an archive through several workers; the results are those of `dovit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, targets
from dovit_deploy.commands.run_flags import checked_action, opened_bundle
from dovit_deploy.engines.registry import AUTO
from dovit_deploy.errors import UsageError

if TYPE_CHECKING:
    from dovit_deploy.batch.rows import Selected
    from dovit_deploy.commands.batch_steps import BatchPlaces

SEGMENT_SECONDS = 10.0

Archive = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, globs, or a list of them: .txt, .parquet.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster to join, or auto; default: Ray begins here.")
]
WorkerCount = Annotated[
    int | None, typer.Option(min=1, max=100_000, help="Workers; default: as many as there are cores for.")
]
SegmentSeconds = Annotated[
    float, typer.Option(metavar="S", help="Seconds of a video that are computed, and lost by a kill, together.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a batch that was ended or killed.")]
MaxFrames = Annotated[int | None, typer.Option(min=1, max=10**9, help="Of each source, so many frames.")]
BeginSeconds = Annotated[float | None, typer.Option(max=1e9, help="Seconds into each video to begin at.")]
EndSeconds = Annotated[float | None, typer.Option(max=1e9, help="Seconds into each video to stop before.")]
ThreadsOfEach = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="Threads of each worker; default: all cores shared out."),
]


def batch(
    sources: Archive,
    output: Output,
    bundle: arguments.OptionalBundle = None,
    address: Address = None,
    workers: WorkerCount = None,
    segment_seconds: SegmentSeconds = SEGMENT_SECONDS,
    resume: Resume = False,
    engine: arguments.EngineOrAuto = AUTO,
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    classes: arguments.OtherNames = None,
    dense: arguments.StopNothing = False,
    deadline_ms: arguments.DeadlineMs = None,
    audit: arguments.AuditEvery = None,
    save: arguments.SaveKinds = None,
    no_legend: arguments.NoLegend = False,
    overwrite: arguments.Overwrite = False,
    recursive: arguments.Recursive = False,
    max_frames: MaxFrames = None,
    every: arguments.Every = 1,
    start: BeginSeconds = None,
    end: EndSeconds = None,
    threads: ThreadsOfEach = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    max_pixels: arguments.MaxPixels = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Segment or classify an archive with several workers on Ray; the results are those of run."""
    from dovit_deploy.commands.batch_steps import BatchFlags, carried_out
    from dovit_deploy.engines.base import EngineOptions

    checked_action(audit, None, dense=dense, threshold=threshold, deadline_ms=deadline_ms)
    _check_seconds(segment_seconds)
    flags = BatchFlags(
        engine=engine,
        precision=precision,
        thresholds=arguments.thresholds(threshold),
        dense=dense,
        deadline_ms=deadline_ms,
        audit=audit,
        named=_kinds(save),
        legend=not no_legend,
        threads=threads,
        options=EngineOptions(cuda_memory, trust_engine),
        seconds=segment_seconds,
        selected=_selected(every, max_frames, start, end, recursive=recursive, max_pixels=max_pixels),
    )
    places = _claimed(sources, output, bundle, classes, json_file, overwrite=overwrite, resume=resume, quiet=quiet)
    carried_out(places, flags, address=address, workers=workers, quiet=quiet)


def _check_seconds(seconds: float) -> None:
    # Written so that NaN is refused, too.
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--segment-seconds {seconds:g}: a number of seconds above 0 is needed")


def _kinds(save: str | None) -> tuple[str, ...] | None:
    from dovit_deploy.runtime.outputs import KINDS

    return None if save is None else arguments.names(save, option="--save", allowed=KINDS)


def _selected(
    every: int,
    max_frames: int | None,
    start: float | None,
    end: float | None,
    *,
    recursive: bool,
    max_pixels: int | None,
) -> Selected:
    """Which frames of every source are read; raises UsageError for a span that makes no sense."""
    from dovit_deploy.batch.rows import Selected
    from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS

    selected = Selected(
        every=every,
        max_frames=max_frames,
        start=start,
        end=end,
        recursive=recursive,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
    )
    # Found now, before anything is claimed.
    selected.exact()
    return selected


def _claimed(
    sources: list[str],
    output: Path,
    bundle: Path | None,
    classes: Path | None,
    json_file: Path | None,
    *,
    overwrite: bool,
    resume: bool,
    quiet: bool,
) -> BatchPlaces:
    """What is read and written, found to be possible and claimed.

    Raises:
        PackageMissing: Ray is not installed.
        UsageError: the output exists, is in use, or a batch was begun there.
    """
    from dovit_deploy import packages
    from dovit_deploy.batch.archive import foreign_in_batch
    from dovit_deploy.batch.folder import folder_of, refuse_begun
    from dovit_deploy.commands.batch_steps import BatchPlaces

    packages.ray_data()
    path = arguments.bundle_path(bundle, quiet=quiet)
    inputs = (*sources, path, classes)
    working = folder_of(output)
    targets.claim_folder(output, inputs=inputs, overwrite=overwrite or resume, mark=foreign_in_batch)
    targets.claim_report(json_file, inputs=inputs, outputs=(output, working))
    if not resume:
        refuse_begun(working, overwrite=overwrite)
    return BatchPlaces(tuple(sources), output, overwrite, resume, opened_bundle(path, classes), json_file)
