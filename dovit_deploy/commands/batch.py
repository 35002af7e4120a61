"""`dovit batch SOURCE... -o DIR`: an archive through several workers; the results are those of `dovit run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dovit_deploy.commands import arguments, targets
from dovit_deploy.commands.run import checked_action, opened_bundle
from dovit_deploy.engines.registry import AUTO
from dovit_deploy.errors import UsageError

SEGMENT_SECONDS = 10.0

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, globs, or a list of them: .txt, .parquet.")
]


def batch(
    sources: Sources,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")],
    bundle: arguments.OptionalBundle = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster to join, or auto; default: Ray begins here.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Workers; default: as many as there are cores for.")
    ] = None,
    segment_seconds: Annotated[
        float, typer.Option(metavar="S", help="Seconds of a video that are computed, and lost by a kill, together.")
    ] = SEGMENT_SECONDS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a batch that was ended or killed.")] = False,
    engine: arguments.EngineOrAuto = AUTO,
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    classes: arguments.OtherNames = None,
    dense: Annotated[bool, typer.Option("--dense", help="Stop nothing: every token runs through every layer.")] = False,
    deadline_ms: arguments.DeadlineMs = None,
    audit: arguments.AuditEvery = None,
    save: arguments.SaveKinds = None,
    no_legend: arguments.NoLegend = False,
    overwrite: arguments.Overwrite = False,
    recursive: arguments.Recursive = False,
    max_frames: Annotated[int | None, typer.Option(min=1, max=10**9, help="Of each source, so many frames.")] = None,
    every: Annotated[int, typer.Option(min=1, max=10**9, help="Take every N-th frame.")] = 1,
    start: Annotated[float | None, typer.Option(max=1e9, help="Seconds into each video to begin at.")] = None,
    end: Annotated[float | None, typer.Option(max=1e9, help="Seconds into each video to stop before.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads of each worker; default: all cores shared out.")
    ] = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    max_pixels: arguments.MaxPixels = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Segment or classify an archive with several workers on Ray; the results are those of run."""
    from dovit_deploy import packages
    from dovit_deploy.batch.archive import foreign_in_batch
    from dovit_deploy.batch.folder import folder_of, refuse_begun
    from dovit_deploy.batch.rows import Selected
    from dovit_deploy.commands.batch_steps import BatchRequest, carried_out
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.runtime.outputs import KINDS
    from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS

    checked_action(audit, None, dense=dense, threshold=threshold, deadline_ms=deadline_ms)
    # Written so that NaN is refused, too.
    if not 0 < segment_seconds < float("inf"):
        raise UsageError(f"--segment-seconds {segment_seconds:g}: a number of seconds above 0 is needed")
    named = None if save is None else arguments.names(save, option="--save", allowed=KINDS)
    thresholds = arguments.thresholds(threshold)
    packages.ray_data()
    path = arguments.bundle_path(bundle, quiet=quiet)
    inputs = (*sources, path, classes)
    working = folder_of(output)
    targets.claim_folder(output, inputs=inputs, overwrite=overwrite or resume, mark=foreign_in_batch)
    targets.claim_report(json_file, inputs=inputs, outputs=(output, working))
    if not resume:
        refuse_begun(working, overwrite=overwrite)
    selected = Selected(
        every=every,
        max_frames=max_frames,
        start=start,
        end=end,
        recursive=recursive,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
    )
    given = {
        "--engine": engine,
        "--precision": precision,
        "--threshold": threshold,
        "--dense": dense,
        "--deadline-ms": deadline_ms,
        "--audit": audit,
        "--save": save,
        "--no-legend": no_legend,
        "--threads": threads,
        "--segment-seconds": segment_seconds,
        "--cuda-memory": cuda_memory,
        **{f"--{name.replace('_', '-')}": value for name, value in selected.model_dump().items()},
    }
    request = BatchRequest(
        output=output,
        overwrite=overwrite,
        resume=resume,
        given=tuple(sources),
        bundle=opened_bundle(path, classes),
        selected=selected,
        flags={name: str(value) for name, value in given.items() if value is not None},
        engine=engine,
        precision=precision,
        thresholds=thresholds,
        dense=dense,
        deadline_ms=deadline_ms,
        audit=audit,
        named=named,
        legend=not no_legend,
        threads=threads,
        options=EngineOptions(cuda_memory, trust_engine),
        seconds=segment_seconds,
        address=address,
        workers=workers,
        quiet=quiet,
    )
    carried_out(request, json_file)
