"""`dovit build BUNDLE`: TensorRT engines of every stage, kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import EngineInvalid, UsageError

if TYPE_CHECKING:
    from dovit_deploy.engines.tensorrt.build import Progress
    from dovit_deploy.engines.tensorrt.record import EngineRecord
    from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet


HEADERS = ("graph", "tokens", "MB", "build s", "peak MB", "activations MB", "fused attention", "plugins", "host syncs")


def build(
    bundle: Annotated[Path, typer.Argument(help="NAME.dovit.")],
    engine: Annotated[
        str, typer.Option(help="tensorrt-rtx (needs no GPU), or tensorrt (for this machine's GPU).")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="fp16, or fp32 (without fused attention).")] = "fp16",
    buckets: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Token counts to tune for; default: all, tuned for the usual one."),
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Standard operators only: the engines then need no plugin to run.")
    ] = False,
    compute_capability: Annotated[
        str | None,
        typer.Option(metavar="C[,C...]", help="GPUs to build for, as 8.6,12.0 (tensorrt-rtx); default: 8.0 and later."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also one engine of all stages, whose sizes the data decide.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what the cache has.")] = False,
    into_bundle: Annotated[bool, typer.Option("--into-bundle", help="Also copy the engines into the bundle.")] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Build TensorRT engines: one for each stage and one for the dense network, kept in a cache.

    The table is taken from the builder's own log. Nothing is run: whether an engine is fast on a GPU, and how close it
    is to the reference, is for `bench` and `run` on that GPU to say.
    """
    from dovit_deploy.bundle.bundle import Bundle
    from dovit_deploy.engines.tensorrt.build import build_engines
    from dovit_deploy.engines.tensorrt.package import DISTRIBUTIONS, tensorrt_package
    from dovit_deploy.engines.tensorrt.record import BuildRequest
    from dovit_deploy.engines.tensorrt.store import EngineCache, copy_into_bundle

    if engine not in DISTRIBUTIONS:
        raise UsageError(f"--engine: '{engine}' given; engines are built for: {', '.join(DISTRIBUTIONS)}")
    request = BuildRequest(
        precision=precision,
        buckets=_counts(buckets),
        plugins=not no_plugins,
        compute_capabilities=_capabilities(compute_capability),
        merged=merged,
    )
    console.check_writable(json_file)
    opened = Bundle.open(bundle)
    package = tensorrt_package(engine)
    with _status(quiet=quiet) as progress:
        engines, built = build_engines(
            opened, request, package=package, cache=EngineCache(), rebuild=rebuild, progress=progress
        )
    _show(engines, built=built)
    if into_bundle:
        console.result(f"copied to {copy_into_bundle(engines, opened)}")
    console.write_json(json_file, _report(engines, opened.path, built=built))
    use = first_use(opened.path, opened.manifest)
    console.next_command(f"{use} --engine {engine} --precision {precision}", quiet=quiet)


def _counts(text: str | None) -> tuple[int, ...]:
    """ "128,256" -> (128, 256)."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--buckets: '{text}' given; token counts separated by commas are needed, as 128,256,512")
    return tuple(sorted({int(part) for part in parts}))


def _capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.6,12.0" -> ("8.6", "12.0"); which of them can be built for, the package says."""
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if not all(number.isdecimal() for part in parts for number in part.split(".", 1)) or not all(
        "." in part for part in parts
    ):
        raise UsageError(f"--compute-capability: '{text}' given; as in 8.6,12.0 is needed")
    return parts


def _show(engines: EngineSet, *, built: bool) -> None:
    key, record = engines.entry.key, next(iter(engines.records.values()))
    origin = "built" if built else "from the cache"
    title = (
        f"{engines.entry.bundle}: {key.engine} {key.package_version} {key.precision}, "
        f"compute capability {', '.join(record.compute_capabilities)}, {origin}"
    )
    rows = [record_row(record) for record in engines.records.values()]
    show_table(title, HEADERS, rows, right=range(2, 6))
    console.result(f"engines in {engines.folder}; build-verified: none of them has been run")


def record_row(record: EngineRecord) -> tuple[str, ...]:
    """A line of the table; MB are 10^6 bytes."""
    layers = record.layers
    activations = "?" if layers.activation_bytes is None else f"{layers.activation_bytes / 1e6:.1f}"
    return (
        record.graph,
        ", ".join(profile_text(entry.minimum, entry.typical, entry.maximum) for entry in record.profiles) or "all",
        f"{record.file.bytes / 1e6:.1f}",
        f"{record.seconds:.1f}",
        f"{record.peak_memory_bytes / 1e6:.0f}",
        activations,
        f"{layers.fused_attention} of {layers.attention}",
        str(layers.plugin_layers),
        str(layers.host_syncs),
    )


def profile_text(minimum: int, typical: int, maximum: int) -> str:
    """ "1-400-691", or "400" where only that count is built for."""
    return str(maximum) if minimum == maximum else f"{minimum}-{typical}-{maximum}"


def _report(engines: EngineSet, bundle: Path, *, built: bool) -> console.Json:
    return {
        "bundle": str(bundle),
        "folder": str(engines.folder),
        "built": built,
        **engines.entry.model_dump(mode="json"),
        "engines": [record.model_dump(mode="json") for record in engines.records.values()],
    }


@contextmanager
def _status(*, quiet: bool) -> Iterator[Progress]:
    """What is being built and for how long, on stderr."""
    if quiet:
        yield lambda step: None
        return
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    start, stream = perf_counter(), console.errors_console()
    with Bar(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=stream, transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def say(step: str) -> None:
            bar.update(task, description=step)
            if not stream.is_terminal:
                # Without a terminal nothing is drawn; a log then shows at least what was begun when.
                console.remark(f"{perf_counter() - start:6.1f} s  {step}", quiet=False)

        yield say


# `dovit cache ls|prune`: the engines that were built on this machine, and removing those that nobody can use.


class Action(StrEnum):
    """What to do with the cache."""

    ls = "ls"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="ls: list the engines. prune: remove what cannot be used any more.")],
    everything: Annotated[bool, typer.Option("--all", help="prune: remove usable engines as well.")] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """List or prune the cache of built engines.

    `prune` removes what killed builds left, damaged engines, and engines of another version of TensorRT or of this
    package, which are never taken again.
    """
    from dovit_deploy.engines.tensorrt.store import EngineCache

    console.check_writable(json_file)
    store = EngineCache()
    if action is Action.ls:
        _list(store, json_file)
        console.next_command("dovit cache prune", quiet=quiet)
        return
    wanted = _usable_here()
    removed, freed = store.prune(lambda folder: everything or why_unusable(folder, wanted) is not None)
    for folder in removed:
        console.result(f"removed {folder.name}")
    console.result(f"{len(removed)} entries removed from {store.root}, {freed / 1e6:.1f} MB freed")
    console.write_json(json_file, {"removed": [folder.name for folder in removed], "freed_bytes": freed})
    console.next_command("dovit cache ls", quiet=quiet)


def _list(store: EngineCache, json_file: Path | None) -> None:
    from dovit_deploy.engines.tensorrt.store import folder_bytes, open_engines

    wanted, rows, report = _usable_here(), [], []
    for folder in store.folders():
        unusable, size = why_unusable(folder, wanted), folder_bytes(folder)
        try:
            facts = _facts(open_engines(folder, origin="cache"))
        except EngineInvalid:
            facts = ("?",) * 5
        rows.append((folder.name, *facts, f"{size / 1e6:.1f}", unusable or "usable"))
        report.append({"key": folder.name, "folder": str(folder), "bytes": size, "unusable": unusable})
    headers = ("key", "bundle", "engine", "precision", "graphs", "built", "MB", "")
    show_table(f"{len(rows)} entries in {store.root}", headers, rows, right=(6,))
    console.write_json(json_file, {"root": str(store.root), "entries": report})


def _facts(engines: EngineSet) -> tuple[str, ...]:
    key = engines.entry.key
    name = f"{key.engine} {key.package_version}"
    return engines.entry.bundle, name, key.precision, str(len(key.graphs)), engines.entry.built_at[:10]


def _usable_here() -> dict[str, str | None]:
    """Version of each TensorRT package here, None where it is absent, and of the code of graphs and plugins."""
    from dovit_deploy.engines.plugins.library import plugin_digest
    from dovit_deploy.engines.tensorrt.package import DISTRIBUTIONS, installed_version
    from dovit_deploy.engines.tensorrt.record import build_digest

    return {
        "": build_digest(),
        "plugins": plugin_digest(),
        **{engine: installed_version(engine) for engine in DISTRIBUTIONS},
    }


def why_unusable(folder: Path, here: dict[str, str | None]) -> str | None:
    """Why the engines in `folder` will never be taken again; None where they may be.

    A package that is not installed is no reason: it may be in another environment of the same user.
    """
    from dovit_deploy.engines.tensorrt.store import open_engines

    try:
        key = open_engines(folder, origin="cache").entry.key
    except EngineInvalid as error:
        return f"damaged: {error}"
    version = here.get(key.engine)
    if version is not None and version != key.package_version:
        return f"for {key.engine} {key.package_version}; {version} is installed"
    if key.forms != here[""]:
        return "by another version of dovit-deploy"
    if key.plugins and key.plugin_code != here["plugins"]:
        return "with other plugins than there are now"
    return None
