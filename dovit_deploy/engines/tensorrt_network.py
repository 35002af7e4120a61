"""One ONNX file -> one serialised engine, inside the process that builds: TensorRT's own calls and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.engine_record import TensorRecord
from dovit_deploy.engines.padded_form import INDEX
from dovit_deploy.engines.tensorrt_package import TensorRtPackage
from dovit_deploy.errors import EngineBuildFailed

SHOWN = 3
"""Messages that an error repeats."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine as bytes, and what its builder knew."""

    plan: memoryview
    tensors: tuple[TensorRecord, ...]
    messages: tuple[str, ...]
    """Everything that was logged, in order."""
    seconds: float
    peak_memory_bytes: int


def built_engine(
    package: TensorRtPackage,
    onnx_path: Path,
    *,
    profiles: Sequence[TokenCount],
    compute_capabilities: Sequence[str],
) -> BuiltEngine:
    """Parse and build.

    Args:
        profiles: lengths of `index`, one optimisation profile each; ignored where the graph has one size.
        compute_capabilities: ("8.6", ...) to build for; empty: the package's default.

    Raises:
        EngineBuildFailed: the parser or the builder refuses; with what it said.
    """
    trt, start = package.module, perf_counter()
    logger = package.logger(everything=True)
    builder = trt.Builder(logger)
    network = builder.create_network(package.network_flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise EngineBuildFailed(_refusal("the parser", onnx_path, _parser_errors(parser) or logger.errors))
    config = builder.create_builder_config()
    # The layer table tells fused attention, plugins and host copies only when it is detailed.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profiles(builder, config, network, profiles)
    _set_compute_capabilities(package, config, compute_capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineBuildFailed(_refusal("the builder", onnx_path, logger.errors))
    return BuiltEngine(
        memoryview(plan), _tensors(network, trt), tuple(logger.messages), perf_counter() - start, peak_memory()
    )


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource
        import sys

        # After `exec` this may still show the parent's, so it is the second choice.
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _parser_errors(parser: Any) -> list[str]:  # noqa: ANN401
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    return [f"node {error.node_name() or error.node()} ({error.node_operator()}): {error.desc()}" for error in errors]


def _refusal(who: str, path: Path, messages: Sequence[str]) -> str:
    said = "; ".join(" ".join(message.split()) for message in messages[:SHOWN]) or "it gave no reason"
    return f"{path.stem}: {who} of TensorRT refuses the graph: {said}"


def _add_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[TokenCount]) -> None:  # noqa: ANN401
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    if all(tensor.name != INDEX for tensor in inputs):
        return
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
    names = {
        getattr(trt.DataType, kind): name
        for kind, name in (
            *(("HALF", "float16"), ("FLOAT", "float32"), ("INT64", "int64"), ("INT32", "int32"), ("BOOL", "bool")),
        )
    }
    inputs = [("input", network.get_input(number)) for number in range(network.num_inputs)]
    outputs = [("output", network.get_output(number)) for number in range(network.num_outputs)]
    return tuple(
        TensorRecord.model_validate(
            {"name": tensor.name, "mode": mode, "dtype": names[tensor.dtype], "shape": tuple(tensor.shape)}
        )
        for mode, tensor in (*inputs, *outputs)
    )
