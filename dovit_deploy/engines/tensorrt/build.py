"""A bundle -> engines: each graph built in a process of its own, the result kept under a key of all it depends on."""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy import __version__
from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.manifest import FileEntry, TokenCount
from dovit_deploy.engines.plugins.library import registered_plugins
from dovit_deploy.engines.tensorrt.network import built_engine, layer_table, summary_of_log
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, child_environment, library_folder, tensorrt_package
from dovit_deploy.engines.tensorrt.record import (
    BuildRequest,
    EngineEntry,
    EngineKey,
    EngineRecord,
    LayerSummary,
    PluginRecord,
    TensorRecord,
    engine_key,
)
from dovit_deploy.engines.tensorrt.store import ENTRY, EngineCache, EngineSet, open_engines
from dovit_deploy.errors import DovitError, EngineBuildFailed, EngineInvalid, InputError
from dovit_deploy.graphs.derived import DerivedGraph, derive_graphs
from dovit_deploy.graphs.plugins import DOMAIN, VERSION
from dovit_deploy.record import Record

# The process that builds one engine: reads a job, writes the engine and an outcome, and may die of a signal.
#
# TensorRT aborts or crashes on some graphs; whoever started this process then still lives and can say so
# (build.py). Run as `python -m dovit_deploy.engines.tensorrt.build JOB.json`.

PR_SET_PDEATHSIG = 1


class BuilderJob(Record):
    """What is to be built; paths are absolute."""

    engine: str
    onnx: str
    output: str
    """Where the engine goes."""
    table: str
    """Where the builder's layer table goes."""
    outcome: str
    """Where the `BuilderOutcome` goes, last of all."""
    profiles: tuple[TokenCount, ...]
    compute_capabilities: tuple[str, ...]
    plugins: bool
    attention: int
    parent: int
    """Process that waits for the outcome."""


class BuilderOutcome(Record):
    """What came of it: an error's words, or the facts about an engine."""

    error: str | None = None
    tensors: tuple[TensorRecord, ...] = ()
    layers: LayerSummary | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0


def main(arguments: list[str]) -> None:
    """Carry out the job in the file named by the one argument."""
    job = BuilderJob.model_validate_json(Path(arguments[0]).read_bytes())
    die_with(job.parent)
    # Ctrl-C reaches the whole group; the parent alone decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = _carried_out(job)
    except (DovitError, OSError) as error:
        outcome = BuilderOutcome(error=str(error))
    Path(job.outcome).write_text(outcome.model_dump_json(), encoding="utf-8")


def _carried_out(job: BuilderJob) -> BuilderOutcome:
    package = tensorrt_package(job.engine)
    if job.plugins:
        registered_plugins(package)
    engine = built_engine(package, Path(job.onnx), profiles=job.profiles, compute_capabilities=job.compute_capabilities)
    Path(job.output).write_bytes(engine.plan)
    Path(job.table).write_text(layer_table(engine.messages), encoding="utf-8")
    return BuilderOutcome(
        tensors=engine.tensors,
        layers=summary_of_log(engine.messages, attention=job.attention),
        seconds=engine.seconds,
        peak_memory_bytes=engine.peak_memory_bytes,
    )


def die_with(parent: int) -> None:
    """Let the kernel end this process when its parent is gone, so that no orphan builds on into a removed folder."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


BUILDER = "dovit_deploy.engines.tensorrt.build"

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
    home = str(Path(__file__).parents[3])
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


if __name__ == "__main__":
    main(sys.argv[1:])
