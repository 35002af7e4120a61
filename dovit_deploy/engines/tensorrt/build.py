"""A bundle -> engines: each graph is built in a process of its own, and kept under a key of all that it depends on."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy import __version__
from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.manifest import FileEntry
from dovit_deploy.engines.tensorrt.builder import BuilderJob, BuilderOutcome
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, child_environment, library_folder
from dovit_deploy.engines.tensorrt.record import (
    BuildRecord,
    BuildRequest,
    EngineKey,
    EngineRecord,
    PluginRecord,
    engine_key,
)
from dovit_deploy.engines.tensorrt.store import ENTRY, EngineCache, EngineSet, open_engines
from dovit_deploy.errors import EngineBuildFailed, EngineInvalid
from dovit_deploy.files import reported_writes
from dovit_deploy.graphs.forms import DerivedGraph, derive_graphs
from dovit_deploy.graphs.plugins import DOMAIN, VERSION
from dovit_deploy.interruption import signal_name

BUILDER = "dovit_deploy.engines.tensorrt.builder"
"""Module whose `main(path of a job)` the child process calls."""

START = "import importlib, sys; sys.path[:] = sys.argv[3:]; importlib.import_module(sys.argv[1]).main(sys.argv[2])"
"""Program of the child: it takes over this process's import path, so that it imports the very same code, whether from a
wheel, a checkout or a folder that was added at run time, and nothing from the folder it happens to be started in."""


def build_engines(
    bundle: Bundle,
    request: BuildRequest,
    *,
    package: TensorRtPackage,
    cache: EngineCache,
    rebuild: bool = False,
    progress: Callable[[str], None],
) -> tuple[EngineSet, bool]:
    """The engines of `bundle`, from the cache or built now; also whether they were built now.

    Raises:
        UsageError: see `engine_key`.
        EngineBuildFailed: TensorRT refuses a graph, or its process dies; the cache is unchanged.
        OutputFailed: the cache cannot be written.
    """
    key = engine_key(bundle, request, package)
    with cache.locked(key, waiting=lambda: progress("waiting for another build of the same engines")):
        # Under the lock: the process that held it until now may just have built them.
        found = None if rebuild else _undamaged(cache, key, progress)
        if found is not None:
            return found, False
        with reported_writes(cache.root, kept="nothing is changed"), cache.filling(key) as folder:
            _fill(folder, bundle, key, package, progress)
        return open_engines(cache.root / key.name, origin="cache"), True


def _undamaged(cache: EngineCache, key: EngineKey, progress: Callable[[str], None]) -> EngineSet | None:
    """The engines of `key` in the cache; None where there are none, or where they must be built again."""
    try:
        return cache.find(key)
    except EngineInvalid as error:
        progress(f"damaged, built again: {error}")
        return None


def _fill(
    folder: Path, bundle: Bundle, key: EngineKey, package: TensorRtPackage, progress: Callable[[str], None]
) -> None:
    """Build every engine of `key` into `folder`."""
    progress("deriving graphs")
    graphs, weights = derive_graphs(bundle, tuple(key.graphs), folder, precision=key.precision, plugins=key.plugins)
    # All graphs share the file: it is hashed once.
    weights_entry = file_entry(weights)
    for number, graph in enumerate(graphs, start=1):
        progress(f"building {graph.name} ({number} of {len(graphs)})")
        outcome = build_graph(folder, graph, key, package)
        record = _record(folder, graph, key, package, outcome, weights_entry)
        (folder / f"{graph.name}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = BuildRecord(key=key, bundle=bundle.manifest.name, tool=f"dovit-deploy {__version__}", built_at=now)
    (folder / ENTRY).write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")


def build_graph(folder: Path, graph: DerivedGraph, key: EngineKey, package: TensorRtPackage) -> BuilderOutcome:
    """Build one engine in a child process: writes `<graph>.engine` and `<graph>.layers.txt` to `folder`.

    Raises:
        EngineBuildFailed: TensorRT refuses the graph, or its process dies.
    """
    job = BuilderJob(
        engine=key.engine,
        onnx=str(graph.path),
        output=str(folder / f"{graph.name}.engine"),
        table=str(folder / f"{graph.name}.layers.txt"),
        outcome=str(folder / f"{graph.name}.outcome"),
        profiles=key.profiles[graph.name],
        # A package that builds for this machine's GPU only has no list to set.
        compute_capabilities=key.compute_capabilities if package.capabilities.compute_capabilities else (),
        plugins=key.plugins,
        attention=graph.attention,
        parent=os.getpid(),
    )
    path = folder / f"{graph.name}.job"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    status, errors = run_child(path, package)
    outcome = _outcome(graph.name, Path(job.outcome), status, errors)
    for done in (path, Path(job.outcome)):
        done.unlink()
    return outcome


def run_child(job: Path, package: TensorRtPackage) -> tuple[int, str]:
    """Run the process that carries out `job`; returns its status (minus the signal that ended it) and its stderr."""
    command = [sys.executable, "-c", START, BUILDER, str(job), *sys.path]
    with subprocess.Popen(
        command,
        env=child_environment(library_folder(package)),
        stdin=subprocess.DEVNULL,
        # TensorRT writes to stdout, which holds the command's results.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            _, errors = child.communicate()
        except BaseException:
            # Ctrl-C: the child ignores it, so that only one process handles it.
            child.kill()
            raise
    return child.returncode, errors


def _outcome(graph: str, path: Path, status: int, errors: str) -> BuilderOutcome:
    """What the child wrote to `path`.

    Raises:
        EngineBuildFailed: it refused, or it died.
    """
    try:
        outcome = BuilderOutcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        # No outcome: the process died before its last step. What it wrote last to stderr is often an assertion.
        last = [line.strip() for line in errors.splitlines() if line.strip()][-1:]
        words = f"; its last words: {last[0]}" if last else ""
        how = f"was ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        raise EngineBuildFailed(f"{graph}: the process that builds it {how}{words}") from error
    if outcome.error is not None:
        raise EngineBuildFailed(outcome.error)
    return outcome


def _record(
    folder: Path,
    graph: DerivedGraph,
    key: EngineKey,
    package: TensorRtPackage,
    outcome: BuilderOutcome,
    weights: FileEntry,
) -> EngineRecord:
    """The sidecar of one engine."""
    assert outcome.layers is not None
    plugins = None
    if graph.plugin_calls:
        plugins = PluginRecord(
            namespace=DOMAIN,
            version=VERSION,
            calls=dict(sorted(graph.plugin_calls.items())),
            sha256=key.plugin_code,
        )
    return EngineRecord(
        graph=graph.name,
        key=key.name,
        engine=key.engine,
        package_version=key.package_version,
        precision=key.precision,
        # The key has what was requested, perhaps nothing; the record, what the engine was really built for.
        compute_capabilities=key.compute_capabilities or package.default_compute_capabilities,
        tensors=outcome.tensors,
        profiles=key.profiles[graph.name],
        onnx=file_entry(graph.path),
        weights=weights,
        file=file_entry(folder / f"{graph.name}.engine"),
        plugins=plugins,
        layers=outcome.layers,
        seconds=round(outcome.seconds, 2),
        peak_memory_bytes=outcome.peak_memory_bytes,
    )
