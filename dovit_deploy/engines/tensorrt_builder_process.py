"""The process that builds one engine: reads a job, writes the engine and an outcome, and may die of a signal.

TensorRT aborts or crashes on some graphs; whoever started this process then still lives and can say so
(tensorrt_build.py). Run as `python -m dovit_deploy.engines.tensorrt_builder_process JOB.json`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.engines.builder_log import layer_table, summary_of_log
from dovit_deploy.engines.engine_record import LayerSummary, TensorRecord
from dovit_deploy.engines.plugin_library import registered_plugins
from dovit_deploy.engines.tensorrt_network import built_engine
from dovit_deploy.engines.tensorrt_package import tensorrt_package
from dovit_deploy.errors import DovitError

PR_SET_PDEATHSIG = 1


class BuilderJob(Noun):
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


class BuilderOutcome(Noun):
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


if __name__ == "__main__":
    main(sys.argv[1:])
