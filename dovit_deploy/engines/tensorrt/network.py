"""One ONNX file -> one serialised engine, inside the process that builds: TensorRT's own calls and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.engines.tensorrt.record import LayerSummary, TensorRecord
from dovit_deploy.errors import EngineBuildFailed
from dovit_deploy.graphs.padding import INDEX

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


# TensorRT's own words about a build: the layer table of its VERBOSE log, and what it says about memory.
#
# TensorRT for RTX prints one message `Layers:` with a line `Name: ..., LayerType: ..., ...` for each layer and the
# inputs and outputs after them; TensorRT 10 prints `Engine Layer Information:` with lines `Layer(TYPE): NAME, ...`.
# Of several optimisation profiles each has its layers, one profile after the other, and the tensors of all
# but the first
# are called `NAME [profile N]`.

TABLE = re.compile(r"^(?:Layers:|Engine Layer Information:)")
LINE = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w*),|^Layer\((?P<kind2>[^)]*)\): (?P<name2>.+?), ")
PLUGIN_KINDS = frozenset({"custom_layer", "PluginV3", "PluginV2", "Plugin"})
FUSED_ATTENTION = re.compile(r"(?:^|_)f?mh(?:a|ca)(?:_|$)", re.IGNORECASE)
HOST_COPY = re.compile(r"DeviceToHost|HostToDevice|ShapeHost|DeviceToShape|HostSync", re.IGNORECASE)
HOST_TENSOR = re.compile(r"^ Name: (?P<name>.+?), IOMode: .*(?:Location: Host|IsShapeInferenceIO: true)")
PROFILE = re.compile(r"\[profile (\d+)\]")
ACTIVATIONS = re.compile(r"^Total Activation Memory: (\d+)")


@dataclass(frozen=True)
class Layer:
    """A line of the table."""

    name: str
    kind: str
    profile: int
    """Number of the optimisation profile that runs it."""


def layer_table(messages: Iterable[str]) -> str:
    """The message that holds the layer table; empty where there is none."""
    return next((message for message in messages if TABLE.match(message)), "")


def layers_from_table(table: str) -> tuple[Layer, ...]:
    """The layers of a table, in order."""
    layers, profile = [], 0
    for line in table.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        # A layer of constants alone bears no number; it belongs with what stands before it.
        number = PROFILE.search(line)
        profile = int(number[1]) if number else profile
        layers.append(Layer(match["name"] or match["name2"], match["kind"] or match["kind2"] or "", profile))
    return tuple(layers)


def summary_of_log(messages: Iterable[str], *, attention: int) -> LayerSummary:
    """What the log of a build says, of the optimisation profile that is worst in each respect.

    Args:
        messages: of every severity.
        attention: how many attentions the graph has.
    """
    kept = tuple(messages)
    table = layer_table(kept)
    profiles: dict[int, list[Layer]] = {}
    for layer in layers_from_table(table):
        profiles.setdefault(layer.profile, []).append(layer)
    each = list(profiles.values())
    memory = [int(match[1]) for match in map(ACTIVATIONS.match, kept) if match]
    return LayerSummary(
        layers=max(map(len, each), default=0),
        attention=attention,
        fused_attention=min((sum(map(_is_fused_attention, layers)) for layers in each), default=0),
        plugin_layers=max((sum(layer.kind in PLUGIN_KINDS for layer in layers) for layers in each), default=0),
        host_syncs=max((sum(map(_copies_to_or_from_host, layers)) for layers in each), default=0)
        + sum(bool(HOST_TENSOR.match(line)) for line in table.splitlines()),
        activation_bytes=memory[-1] if memory else None,
    )


def _is_fused_attention(layer: Layer) -> bool:
    return bool(FUSED_ATTENTION.search(layer.name))


def _copies_to_or_from_host(layer: Layer) -> bool:
    return bool(HOST_COPY.search(f"{layer.kind} {layer.name}"))
