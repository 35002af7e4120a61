"""`dovit run SOURCE`: pictures in; overlay, masks, tokens and a truthful report out."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console
from dovit_deploy.errors import Interrupted, PartialFailure, UsageError

if TYPE_CHECKING:
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.runtime.session import Session


def run(
    source: Annotated[str, typer.Argument(help="Image, folder, glob, video, camera index or stream URL.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; default: runs/<stem>.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="NAME.dovit; default: the installed default model.")] = None,
    engine: arguments.EngineName = "onnxruntime",
    precision: arguments.Precision = None,
    threshold: arguments.Threshold = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names instead of the bundle's: JSON, or a line each.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Stop nothing: every token runs through every layer.")] = False,
    save: Annotated[
        str | None,
        typer.Option(metavar="KIND[,KIND...]", help="overlay, masks, tokens. Default: overlay; of images also masks."),
    ] = None,
    overwrite: arguments.Overwrite = False,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every N-th frame.")] = 1,
    start: Annotated[float | None, typer.Option(help="Seconds into the video to begin at.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the video to stop before.")] = None,
    threads: arguments.Threads = None,
    cuda_memory: arguments.CudaMemory = None,
    trust_engine: arguments.TrustEngine = False,
    max_pixels: arguments.MaxPixels = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Segment or classify images or video; report latency, tokens and FLOPs saved, frame by frame."""
    from dovit_deploy.bundle.bundle import Bundle, default_bundle
    from dovit_deploy.engines.base import EngineOptions
    from dovit_deploy.interruption import stop_requests
    from dovit_deploy.runtime.outputs import KINDS
    from dovit_deploy.runtime.run import RunJob
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.runtime.settings import RunSettings
    from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS, ImageSource
    from dovit_deploy.sources.open import open_source

    if dense and threshold is not None:
        raise UsageError("--dense stops nothing, so --threshold has no meaning; give one of them")
    kinds = None if save is None else arguments.names(save, option="--save", allowed=KINDS)
    values, wanted = arguments.thresholds_or_one(threshold), EngineOptions(cuda_memory, trust_engine)
    console.check_writable(json_file, given=Path(source))
    job_output = _output_folder(source, output, overwrite=overwrite)
    path, licence = (bundle, None) if bundle is not None else default_bundle()
    with open_source(
        source, max_pixels=max_pixels or DEFAULT_MAX_PIXELS, every=every, max_frames=max_frames, start=start, end=end
    ) as frames:
        _refuse_inputs_inside(job_output, frames.paths if isinstance(frames, ImageSource) else ())
        opened = _named(Bundle.open(path), classes)
        chosen = _kinds(kinds, opened, video=frames.video is not None)
        settings = RunSettings.resolve(opened.manifest, thresholds=values, dense=dense)
        if licence:
            console.remark(licence, quiet=quiet)
        with (
            Session(opened, engine=engine, precision=precision, threads=threads, options=wanted) as session,
            stop_requests() as stop,
        ):
            job = RunJob(
                session,
                frames,
                folder=job_output,
                kinds=chosen,
                settings=settings,
                every=every,
            )
            with console.progress(total=frames.count, unit="frames", quiet=quiet) as shown:
                failed = partial(console.remark, quiet=False)
                summary = job.run(stop=stop, advance=shown.advance, failed=failed)
        for line in (*frames.warnings, *job.warnings):
            console.remark(f"note: {line}", quiet=quiet)
        ended_early = frames.ended_early
    _finish(summary, job_output, json_file=json_file, quiet=quiet, session=session, source=source)
    _tell_unfinished(summary, job_output, unreadable=len(job.failures), ended_early=ended_early)


def _tell_unfinished(summary: dict[str, object], output: Path, *, unreadable: int, ended_early: str | None) -> None:
    """Raise Interrupted or PartialFailure unless everything was done."""
    if summary["interrupted"]:
        raise Interrupted(f"stopped after {summary['frames']} frames; what was done is in {output}")
    if unreadable:
        raise PartialFailure(f"{unreadable} inputs could not be read, the others are done: {output}")
    if ended_early:
        raise PartialFailure(f"{ended_early}; {summary['frames']} frames are done: {output}")


def _named(bundle: Bundle, classes: Path | None) -> Bundle:
    """The bundle with the names of `--classes`."""
    from dovit_deploy.bundle.manifest import classes_from_file, renamed

    if classes is None:
        return bundle
    return dataclasses.replace(bundle, manifest=renamed(bundle.manifest, classes_from_file(classes)))


def _kinds(given: tuple[str, ...] | None, bundle: Bundle, *, video: bool) -> tuple[str, ...]:
    """What to save: as named, or the default of the bundle's task."""
    from dovit_deploy.runtime.tasks import task_from_manifest

    task = task_from_manifest(bundle.manifest)
    if given is not None:
        return task.checked(given, name=bundle.manifest.name)
    return task.video_default if video else task.images_default


def _output_folder(source: str, output: Path | None, *, overwrite: bool) -> Path:
    """Where the results go: as named, or `runs/<stem>`, numbered when taken.

    Raises:
        UsageError: it exists, or it is the input or holds it.
    """
    from dovit_deploy.files import free_path, refuse_existing

    if output is None:
        stem = Path(source.rstrip("/").rsplit("/", 1)[-1]).stem.strip("*?[]") or "run"
        return free_path(Path("runs") / (f"camera{stem}" if source.isdecimal() else stem))
    target, given = output.resolve(), Path(source).resolve()
    if target == given or target in given.parents:
        raise UsageError(f"-o {output}: this is the input, or holds it; choose another folder")
    refuse_existing(output, overwrite=overwrite)
    return output


def _refuse_inputs_inside(output: Path, inputs: tuple[Path, ...]) -> None:
    """A glob can reach into the folder that would be replaced."""
    target = output.resolve()
    for path in inputs:
        if target in path.resolve().parents:
            raise UsageError(f"-o {output}: it holds the input {path}; choose another folder")


def _finish(
    summary: dict[str, object], folder: Path, *, json_file: Path | None, quiet: bool, session: Session, source: str
) -> None:
    from dovit_deploy.runtime.run import summary_lines

    console.write_json(json_file, summary)
    for line in summary_lines(summary):
        console.result(line)
    console.result(str(folder))
    bundle = session.bundle.path
    console.next_command(f"dovit bench {bundle} --frames {source}", quiet=quiet)
