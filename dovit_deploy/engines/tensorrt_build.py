"""A bundle -> engines: each graph built in a process of its own, the result kept under a key of all it depends on."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy import __version__
from dovit_deploy.bundle.directory import Bundle, file_entry
from dovit_deploy.bundle.manifest import FileEntry
from dovit_deploy.engines.engine_cache import EngineCache
from dovit_deploy.engines.engine_folder import ENTRY, EngineSet, open_engines
from dovit_deploy.engines.engine_graphs import DerivedGraph, derive_graphs
from dovit_deploy.engines.engine_record import EngineEntry, EngineKey, EngineRecord, PluginRecord
from dovit_deploy.engines.engine_request import BuildRequest, engine_key
from dovit_deploy.engines.tensorrt_builder_process import BuilderJob, BuilderOutcome
from dovit_deploy.engines.tensorrt_package import TensorRtPackage, child_environment, library_folder
from dovit_deploy.engines.token_functions import DOMAIN, VERSION
from dovit_deploy.errors import EngineBuildFailed, EngineInvalid, InputError

BUILDER = "dovit_deploy.engines.tensorrt_builder_process"

Progress = Callable[[str], None]


def build_engines(
    bundle: Bundle,
    request: BuildRequest,
    *,
    package: TensorRtPackage,
    cache: EngineCache,
    rebuild: bool = False,
    progress: Progress,
) -> tuple[EngineSet, bool]:
    """The engines of `bundle`, from the cache or built now; also whether they were built now.

    Raises:
        UsageError: see `engine_key`.
        EngineBuildFailed: TensorRT refuses a graph, or its process dies; the cache is as it was.
        InputError: the cache cannot be written.
    """
    key = engine_key(bundle, request, package)
    with cache.locked(key, waiting=lambda: progress("waiting for another build of the same engines")):
        found = None if rebuild else _sound(cache, key, progress)
        if found is not None:
            return found, False
        try:
            with cache.filling(key) as folder:
                _fill(folder, bundle, key, package, progress)
        except OSError as error:
            raise InputError(f"cannot write {cache.root}: {error.strerror or error}; nothing is changed") from error
        return open_engines(cache.root / key.name, origin="cache"), True


def _sound(cache: EngineCache, key: EngineKey, progress: Progress) -> EngineSet | None:
    """What the cache has, unless it is damaged: then it is built again."""
    try:
        return cache.find(key)
    except EngineInvalid as error:
        progress(f"damaged, built again: {error}")
        return None


def _fill(folder: Path, bundle: Bundle, key: EngineKey, package: TensorRtPackage, progress: Progress) -> None:
    """Build every engine of `key` into `folder`."""
    progress("deriving graphs")
    graphs, weights = derive_graphs(bundle, tuple(key.graphs), folder, precision=key.precision, plugins=key.plugins)
    weights_entry = file_entry(weights)
    for number, graph in enumerate(graphs, start=1):
        progress(f"building {graph.name} ({number} of {len(graphs)})")
        outcome = _built(folder, graph, key, package)
        record = _record(folder, graph, key, package, outcome, weights_entry)
        (folder / f"{graph.name}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = EngineEntry(key=key, bundle=bundle.manifest.name, tool=f"dovit-deploy {__version__}", built_at=now)
    (folder / ENTRY).write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _built(folder: Path, graph: DerivedGraph, key: EngineKey, package: TensorRtPackage) -> BuilderOutcome:
    """Build one engine in a child process."""
    job = BuilderJob(
        engine=key.engine,
        onnx=str(graph.path),
        output=str(folder / f"{graph.name}.engine"),
        table=str(folder / f"{graph.name}.layers.txt"),
        outcome=str(folder / f"{graph.name}.outcome"),
        profiles=key.profiles[graph.name],
        # A single-GPU package takes what is there; it has no list to be set.
        compute_capabilities=key.compute_capabilities if package.capabilities.compute_capabilities else (),
        plugins=key.plugins,
        attention=graph.attention,
        parent=os.getpid(),
    )
    path = folder / f"{graph.name}.job"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    status, said = run_child([sys.executable, "-m", BUILDER, str(path)], package)
    outcome = _outcome(graph.name, Path(job.outcome), status, said)
    for done in (path, Path(job.outcome)):
        done.unlink()
    return outcome


def run_child(command: list[str], package: TensorRtPackage) -> tuple[int, str]:
    """Run a process that uses TensorRT; gives its status (minus the signal that ended it) and what it said last."""
    environment = child_environment(library_folder(package))
    # It is the same code that the child must import, wherever it was imported from.
    home = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (home, environment.get("PYTHONPATH")) if part)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            _, said = child.communicate()
        except BaseException:
            # Ctrl-C: the child ignores it, so that one place decides.
            child.kill()
            raise
    return child.returncode, said


def _outcome(graph: str, path: Path, status: int, said: str) -> BuilderOutcome:
    """What the child left.

    Raises:
        EngineBuildFailed: it refused, or it died.
    """
    try:
        outcome = BuilderOutcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        words = f"; its last words: {last[0]}" if last else ""
        how = f"was ended by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        raise EngineBuildFailed(f"{graph}: the process that builds it {how}{words}") from error
    if outcome.error is not None:
        raise EngineBuildFailed(outcome.error)
    return outcome


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _record(
    folder: Path,
    graph: DerivedGraph,
    key: EngineKey,
    package: TensorRtPackage,
    outcome: BuilderOutcome,
    weights: FileEntry,
) -> EngineRecord:
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
