"""`dovit build BUNDLE`: TensorRT engines of every stage, kept in the cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovit_deploy.commands import arguments, console, targets
from dovit_deploy.commands.arguments import first_use
from dovit_deploy.commands.console import show_table
from dovit_deploy.errors import UsageError

if TYPE_CHECKING:
    from dovit_deploy.engines.tensorrt.record import EngineRecord
    from dovit_deploy.engines.tensorrt.store import EngineSet


HEADERS = ("graph", "tokens", "MB", "build s", "peak MB", "activations MB", "fused attention", "plugins", "host syncs")


def build(
    bundle: arguments.BundleName,
    engine: Annotated[
        str, typer.Option(help="tensorrt-rtx (needs no GPU), or tensorrt (for this machine's GPU).")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="fp16, or fp32 (without fused attention).")] = "fp16",
    buckets: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Token counts to tune for; default: all, tuned for the typical one."),
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Standard operators only: the engines then need no plugin to run.")
    ] = False,
    compute_capability: Annotated[
        str | None,
        typer.Option(metavar="C[,C...]", help="GPUs to build for, as 8.6,12.0 (tensorrt-rtx); default: 8.0 and later."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also one engine of all stages, whose sizes depend on the data.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again what is in the cache.")] = False,
    into_bundle: Annotated[bool, typer.Option("--into-bundle", help="Also copy the engines into the bundle.")] = False,
    json_file: arguments.JsonFile = None,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Build TensorRT engines: one for each stage and one for the dense network, kept in a cache.

    The table is taken from the builder's own log. Nothing is run: how fast an engine is on a GPU, and how close to the
    reference, only `bench` and `run` on that GPU can show.
    """
    # Imported here, so that `dovit --help` stays fast.
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
    path = arguments.bundle_path(bundle, quiet=quiet)
    targets.claim_report(json_file, inputs=(path,))
    if into_bundle:
        targets.claim(path)
    opened = Bundle.open(path)
    package = tensorrt_package(engine)
    with console.progress(unit="engines", quiet=quiet) as display:
        engines, built = build_engines(
            opened, request, package=package, cache=EngineCache(), rebuild=rebuild, progress=display.begin
        )
    copied = copy_into_bundle(engines, opened) if into_bundle else None
    # Before anything is printed: a reader that stops reading the table (head) must not cost the report.
    console.write_json(json_file, _report(engines, opened.path, built=built))
    _show(engines, built=built)
    if copied is not None:
        console.result(f"copied to {copied}")
    use = first_use(opened.path, opened.manifest)
    console.next_command(f"{use} --engine {engine} --precision {precision}", quiet=quiet)


def _counts(text: str | None) -> tuple[int, ...]:
    """ "128,256" -> (128, 256)."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UsageError(f"--buckets: '{text}' given; token counts separated by commas are needed, as in 128,256,512")
    return tuple(sorted({int(part) for part in parts}))


def _capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.6,12.0" -> ("8.6", "12.0"); the package decides which of them it can build for."""
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if not all(re.fullmatch(r"\d+\.\d+", part) for part in parts):
        raise UsageError(
            f"--compute-capability: '{text}' given; capabilities separated by commas are needed, as in 8.6,12.0"
        )
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
    """A row of the table; MB are 10^6 bytes."""
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
