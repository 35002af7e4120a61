"""OpenVINO on the CPU: how are a bundle's portable graphs read, and for what are they compiled?

The later stages are compiled for a few token counts each (openvino_graphs.py).

In int8 it runs the graphs that were quantised at export (graphs/quantised.py), and computes the rest in bf16 or fp32.

In bf16 OpenVINO computes products of matrices in bfloat16 and everything between the last of them and an output in
float32. A gate's softmax and its comparison with the threshold lie there, so a threshold of 0.98, which bfloat16 cannot
express, stays what it is; `tests/engines/test_openvino.py` holds that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    FP32,
    GRAPH_NAME,
    INDEX,
    MERGED,
    GraphInterface,
    Port,
    check_graph_name,
    check_ports,
    graph_interfaces,
)
from dovit_deploy.engines.base import Array, Buffer, HostMemory
from dovit_deploy.engines.openvino_graphs import (
    BITS,
    BucketedGraph,
    FixedGraph,
    crossing_in_bf16,
    first_line,
    float32_from_bits,
)
from dovit_deploy.engines.square import MATRIX, SQUARE_MODEL, check_square
from dovit_deploy.errors import EnvironmentProblem, GraphMismatch, ProviderMissing
from dovit_deploy.graphs.forms import padded_passes, write_derived
from dovit_deploy.graphs.padding import VALID

DEVICE = "CPU"
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
"""Precision -> what OpenVINO lists of a CPU that computes in it; others would only imitate it."""
GRAPHS = {"int8": "int8"}
"""Precision -> that of the bundle's graphs, where it is not fp32: bf16 is made of them when they are compiled."""


class OpenVinoBackend(HostMemory):
    """Compiles a bundle's graphs for the CPU; buffers are NumPy arrays, those of outputs in OpenVINO's memory.

    Args:
        precision: "fp32", "bf16" or "int8"; what is not in 8 bits there is in bf16 where the CPU computes in it.
        threads: of one run of a graph; None leaves it to OpenVINO (one per physical core).
        callers: threads that run graphs at once, each in a stream of OpenVINO's.

    Raises:
        ProviderMissing: OpenVINO has no CPU plugin, or the CPU does not compute in `precision`.
    """

    name = "openvino"

    def __init__(self, *, precision: str = "fp32", threads: int | None = None, callers: int = 1) -> None:
        self.precision = precision
        self._core = packages.openvino_core()
        capabilities = _capabilities(self._core)
        if CAPABILITIES[precision] not in capabilities:
            raise ProviderMissing(
                f"this CPU does not compute in {precision}; OpenVINO finds {', '.join(capabilities)}; "
                "use --precision fp32"
            )
        self._properties = compile_properties(arithmetic(precision, capabilities), threads, callers)

    def load(self, bundle: Bundle, graph: str) -> FixedGraph | BucketedGraph:
        """Read `graph` and its share of the weights, and compile it where its sizes are known.

        Raises:
            UsageError: the bundle was not exported in this precision.
            GraphMismatch: OpenVINO refuses the graph, or it is not what the manifest promises.
            PackageMissing: `onnx_ir` is not installed, which makes the padded form.
        """
        precision, promised = GRAPHS.get(self.precision, FP32), graph_interfaces(bundle.manifest.spec)[graph]
        # A copy of what was checked: the bundle's own files may change at any moment. OpenVINO reads all of it here.
        with TemporaryDirectory(prefix="dovit-") as copies, TemporaryDirectory(prefix="dovit-") as derived:
            path = bundle.copied_graph(graph, Path(copies), precision=precision)
            described = f"{bundle.path.name}/{path.name}"
            weights = [path.with_name(name) for name in bundle.weights_files(precision)]
            write_derived([path], Path(derived), weights=weights, passes=padded_passes(open_sizes=graph == MERGED))
            model = self._read(Path(derived) / path.name, described)
            valid = (Port(VALID, "int64", ()),) if INDEX in promised.inputs else ()
            check_interface(model, bundle, graph, GraphInterface((*promised.takes, *valid), promised.gives))
            if self._properties["INFERENCE_PRECISION_HINT"] == "bf16":
                model = crossing_in_bf16(model)
            if not valid:
                return self.compiled(model, described)
            return BucketedGraph(partial(self.compiled, described=described), model, total=bundle.manifest.spec.tokens)

    def compiled(self, model: Any, described: str) -> FixedGraph:  # noqa: ANN401  an ov.Model
        """`model`, called `described` in errors, compiled with this backend's properties."""
        # As they are in the file: rewriting may let them have other names, in the same order.
        inputs, outputs = ([port.any_name for port in ports] for ports in (model.inputs, model.outputs))
        with _refusals(described):
            compiled = self._core.compile_model(model, DEVICE, self._properties)
            return FixedGraph(compiled, described, inputs=inputs, outputs=outputs)

    def download(self, buffer: Buffer) -> Array:
        # OpenVINO's memory holds the next frame's values soon.
        return float32_from_bits(buffer) if buffer.dtype == BITS else np.array(buffer)

    def _read(self, path: Path, described: str) -> Any:  # noqa: ANN401  an ov.Model
        with _refusals(described):
            # Not mapped: a disk that is full of temporary files ends in a message, not in a signal.
            model = self._core.read_model(str(path), config={"ENABLE_MMAP": False})
            # It leaves tensors of a megabyte and more in their file until they are asked for, and the file goes now.
            for node in model.get_ops():
                if node.get_type_name() == "Constant":
                    _ = node.data
            return model


_DTYPES = {"f32": "float32", "i64": "int64"}


def check_interface(model: Any, bundle: Bundle, graph: str, promised: GraphInterface) -> None:  # noqa: ANN401  ov.Model
    """Raise GraphMismatch unless `model` is the file of `graph`, and takes and gives what is promised."""
    where = ["framework", GRAPH_NAME]
    check_graph_name(
        bundle.path.name, graph, model.get_rt_info(where).astype(str) if model.has_rt_info(where) else graph
    )
    takes, gives = (tuple(map(_port, ports)) for ports in (model.inputs, model.outputs))
    check_ports(bundle.path.name, graph, promised, GraphInterface(takes, gives))


def _port(found: Any) -> Port:  # noqa: ANN401  an input or output of an ov.Model
    dtype = found.element_type.to_string()
    shape = tuple(side.get_length() if side.is_static else str(side) for side in found.partial_shape)
    return Port(found.any_name, _DTYPES.get(dtype, dtype), shape)


def arithmetic(precision: str, capabilities: Sequence[str]) -> str:
    """What OpenVINO is to compute in where it has the choice: "f32" or "bf16"."""
    fast = precision == "bf16" or (precision == "int8" and CAPABILITIES["bf16"] in capabilities)
    return "bf16" if fast else "f32"


def compile_properties(hint: str, threads: int | None, callers: int = 1) -> dict[str, Any]:
    """What OpenVINO is told. Nothing that changes results is left to its defaults, which differ between CPUs."""
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        # Else activations may be quantised as they come, in groups of a size that depends on the CPU.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        # One frame at a time, as fast as can be; or as many side by side as there are callers.
        "PERFORMANCE_HINT": "LATENCY" if callers == 1 else "THROUGHPUT",
        "NUM_STREAMS": callers,
        # Every graph has threads of its own: pinned, those of all stages, and of other processes, share one core.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        # Of all streams together.
        properties["INFERENCE_NUM_THREADS"] = threads * callers
    return properties


def _capabilities(core: Any) -> list[str]:  # noqa: ANN401  an ov.Core
    try:
        return list(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise ProviderMissing(f"OpenVINO has no CPU plugin that works: {first_line(error)}") from error


@contextmanager
def _refusals(described: str) -> Iterator[None]:
    """OpenVINO's refusal of a graph as one of ours, and the end of memory as what it is."""
    try:
        yield
    except RuntimeError as error:
        raise GraphMismatch(f"OpenVINO cannot load {described}: {first_line(error)}") from error
    except MemoryError as error:
        raise EnvironmentProblem(f"there is not enough memory for OpenVINO to load {described}") from error


def backend(*, precision: str, threads: int | None, callers: int = 1) -> OpenVinoBackend:
    """Entry point of the registry, which has checked `precision`."""
    return OpenVinoBackend(precision=precision, threads=threads, callers=callers)


def probe() -> str:
    """Run a small model on the CPU.

    Raises:
        ProviderMissing: OpenVINO has no CPU plugin that works.
    """
    openvino = packages.openvino()
    core = packages.openvino_core()
    capabilities = _capabilities(core)
    model = core.read_model(SQUARE_MODEL, b"")
    compiled = core.compile_model(model, DEVICE, compile_properties("f32", 1))
    check_square(compiled.create_infer_request().infer({"x": MATRIX})[0])
    return f"{openvino.__version__.partition('-')[0]}, computes in: {', '.join(capabilities)}"
