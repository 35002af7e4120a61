"""The child process that builds one engine: reads a `BuilderJob`, writes the engine, and last of all an outcome.

TensorRT aborts or crashes on some graphs. Because it does so in this process, the parent (build.py) survives and can
report it. All of TensorRT's own calls for building are here: what this file does decides what is in an engine.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from dovit_deploy.bundle.interface import INDEX, MERGED
from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.plugins.library import registered_plugins
from dovit_deploy.engines.tensorrt.layers import LayerSummary, layer_table, summary_of_log
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, tensorrt_package
from dovit_deploy.engines.tensorrt.record import TensorRecord
from dovit_deploy.errors import DovitError, EngineBuildFailed
from dovit_deploy.interruption import die_with
from dovit_deploy.record import Record

SHOWN = 3
"""Number of TensorRT's messages that an error repeats."""


class BuilderJob(Record):
    """What to build; paths are absolute."""

    engine: str
    onnx: str
    output: str
    """File for the engine."""
    table: str
    """File for the builder's layer table."""
    outcome: str
    """File for the `BuilderOutcome`, written after the others."""
    profiles: tuple[TokenCount, ...]
    compute_capabilities: tuple[str, ...]
    plugins: bool
    attention: int
    """Number of attentions in the graph."""
    parent: int
    """Process that waits for the outcome."""


class BuilderOutcome(Record):
    """The text of an error, or the facts about an engine."""

    error: str | None = None
    tensors: tuple[TensorRecord, ...] = ()
    layers: LayerSummary | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, and what its builder knew."""

    plan: memoryview
    tensors: tuple[TensorRecord, ...]
    messages: tuple[str, ...]
    """Everything that was logged, in order."""
    seconds: float


def main(path: str) -> None:
    """Carry out the job that is stored at `path`; what build.py runs in the child process."""
    job = BuilderJob.model_validate_json(Path(path).read_bytes())
    # No orphan keeps building into a removed folder.
    die_with(job.parent)
    # Ctrl-C reaches the whole process group; only the parent handles it, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = _carried_out(job)
    except (DovitError, OSError) as error:
        outcome = BuilderOutcome(error=str(error))
    # Last of all: without this file the parent takes the build for failed.
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
        peak_memory_bytes=peak_memory(),
    )


def built_engine(
    package: TensorRtPackage,
    onnx_path: Path,
    *,
    profiles: Sequence[TokenCount],
    compute_capabilities: Sequence[str],
) -> BuiltEngine:
    """Parse the graph at `onnx_path` and build it.

    Args:
        profiles: lengths of `index`, one optimisation profile each; ignored where the graph has one size.
        compute_capabilities: ("8.6", ...) to build for; empty: the package's default.

    Raises:
        EngineBuildFailed: TensorRT does not start, or its parser or builder refuses the graph; with its messages.
    """
    trt, start = package.module, perf_counter()
    logger = package.logger(everything=True)
    try:
        builder = trt.Builder(logger)
    # pybind11 raises it where TensorRT itself returns nothing, as with a driver that is too old.
    except TypeError as error:
        raise EngineBuildFailed(
            f"{package.engine} {package.version} does not start: {_reasons(logger.errors)}"
        ) from error
    network = builder.create_network(package.network_flags)
    parser = trt.OnnxParser(network, logger)
    # From the file, not from its bytes: the weights are external data, found beside it.
    if not parser.parse_from_file(str(onnx_path)):
        raise _refusal("the parser", onnx_path, _parser_errors(parser) or logger.errors)
    config = builder.create_builder_config()
    configure(package, config, capturable=onnx_path.stem != MERGED)
    _add_profiles(builder, config, network, profiles)
    _set_compute_capabilities(package, config, compute_capabilities)
    # Returns None, and aborts or crashes on some graphs; the reason, if any, is in the log.
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal("the builder", onnx_path, logger.errors)
    # A view, not a copy: a plan is as large as the weights.
    return BuiltEngine(memoryview(plan), _tensors(network, trt), tuple(logger.messages), perf_counter() - start)


def configure(package: TensorRtPackage, config: Any, *, capturable: bool) -> None:  # noqa: ANN401
    """Set what every engine is built with.

    Args:
        capturable: whether it must be possible to capture its work. Sizes that the data decide make it impossible.
    """
    trt = package.module
    # Only the detailed layer table shows fused attention, plugins and host copies.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default, with 10 bits of mantissa: fp32 means fp32, and so it does in what fp16 graphs decide in fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if capturable and package.capabilities.promises_capture:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        # Imported only here: Windows does not have it.
        import resource

        # After `exec` this may still be the parent's figure, so it is only the second choice. macOS counts bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _parser_errors(parser: Any) -> list[str]:  # noqa: ANN401
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    return [f"node {error.node_name() or error.node()} ({error.node_operator()}): {error.desc()}" for error in errors]


def _refusal(who: str, path: Path, messages: Sequence[str]) -> EngineBuildFailed:
    return EngineBuildFailed(f"{path.stem}: {who} of TensorRT refuses the graph: {_reasons(messages)}")


def _reasons(messages: Sequence[str]) -> str:
    return "; ".join(" ".join(message.split()) for message in messages[:SHOWN]) or "it gave no reason"


def _add_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[TokenCount]) -> None:  # noqa: ANN401
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    if all(tensor.name != INDEX for tensor in inputs):
        return
    # In the order of the sidecar, whose profiles are numbered like the engine's.
    for counts in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INDEX, (counts.minimum,), (counts.typical,), (counts.maximum,))
        config.add_optimization_profile(profile)


def _set_compute_capabilities(package: TensorRtPackage, config: Any, names: Sequence[str]) -> None:  # noqa: ANN401
    if not names:
        return
    config.num_compute_capabilities = len(names)
    for number, name in enumerate(names):
        if not config.set_compute_capability(package.compute_capability(name), number):
            raise EngineBuildFailed(f"{package.engine} {package.version} does not build for compute capability {name}")


def _tensors(network: Any, trt: Any) -> tuple[TensorRecord, ...]:  # noqa: ANN401
    """The engine's inputs and outputs. Read from the network: an engine can be asked only where there is a GPU."""
    kinds = {"HALF": "float16", "FLOAT": "float32", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
    names = {getattr(trt.DataType, kind): name for kind, name in kinds.items()}
    inputs = [("input", network.get_input(number)) for number in range(network.num_inputs)]
    outputs = [("output", network.get_output(number)) for number in range(network.num_outputs)]
    return tuple(
        TensorRecord.model_validate(
            {"name": tensor.name, "mode": mode, "dtype": names[tensor.dtype], "shape": tuple(tensor.shape)}
        )
        for mode, tensor in (*inputs, *outputs)
    )
