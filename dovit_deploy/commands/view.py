"""`dovit view BUNDLE [SOURCE]`: a page on this machine, to look at a bundle at work and to move its thresholds."""

from __future__ import annotations

import glob
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dovit_deploy.commands import arguments, console, targets


def view(
    bundle: Annotated[
        str | None, typer.Argument(help="NAME.dovit or an installed model; default: the default model.")
    ] = None,
    source: Annotated[
        str | None, typer.Argument(help="Image, folder, glob or video to go through; without, images are dropped.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="On 127.0.0.1; default: one that is free.")] = None,
    engine: arguments.EngineName = "onnxruntime",
    precision: arguments.Precision = None,
    threads: arguments.Threads = None,
    recursive: arguments.Recursive = False,
    max_pixels: arguments.MaxPixels = None,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Look at a bundle at work in a browser: mask, exit depth, tokens, FLOPs and milliseconds, as thresholds move.

    The page is for this machine alone: it is served on 127.0.0.1, behind an address that nobody guesses, and loads
    nothing from elsewhere. Ctrl-C ends it. `--json` writes the address
    into a file, once it answers.
    """
    from dovit_deploy import packages
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.interruption import stop_requests
    from dovit_deploy.runtime.session import Session
    from dovit_deploy.runtime.tasks import task_from_manifest
    from dovit_deploy.sources.images import DEFAULT_MAX_PIXELS
    from dovit_deploy.sources.open import open_source
    from dovit_deploy.view.frames import frames_from_source
    from dovit_deploy.view.server import serving
    from dovit_deploy.view.viewer import Viewer

    packages.load("jinja2")
    named, source = bundle_and_source(bundle, source)
    path = arguments.bundle_path(named, quiet=quiet)
    targets.claim_report(json_file, inputs=(source, path))
    opened = Bundle.open(path)
    task_from_manifest(opened.manifest)
    most = max_pixels or DEFAULT_MAX_PIXELS
    with ExitStack() as stack:
        frames = None
        if source is not None:
            given = stack.enter_context(open_source(source, max_pixels=most, recursive=recursive))
            frames = frames_from_source(source, given, max_pixels=most)
        session = stack.enter_context(Session(opened, engine=engine, precision=precision, threads=threads))
        viewer = Viewer(session, frames, max_pixels=most)
        stack.callback(viewer.finish)
        stop = stack.enter_context(stop_requests())
        address = stack.enter_context(serving(viewer, port=port))
        backend = session.backend
        facts = {"bundle": str(opened.path), "engine": backend.name, "precision": backend.precision}
        console.write_json(json_file, {"address": address, **facts})
        console.result(address)
        console.remark("open this address in a browser; Ctrl-C ends", quiet=quiet)
        stop.wait()


def bundle_and_source(first: str | None, second: str | None) -> tuple[Path | None, str | None]:
    """The positional arguments `[BUNDLE] [SOURCE]`: one alone that is there, and no bundle, is the source."""
    if first is None or second is not None:
        return (None if first is None else Path(first)), second
    path = Path(first)
    is_source = "://" in first or glob.has_magic(first) or (path.exists() and not _is_bundle(path))
    return (None, first) if is_source else (path, None)


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".dovit" or (path / "manifest.json").is_file()
