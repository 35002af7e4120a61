"""OpenVINO on the CPU: the portable graphs, compiled for one size each.

A graph compiled for a size that is open until it runs is prepared anew at every change of the token count: 1 to 3.5 ms
a stage of the default model, a quarter of its time, and half a megabyte for every count seen. So the later stages are
compiled for a few counts (buckets), and a frame runs in the smallest that holds its tokens; the rest of `index` is
padding, which the graph masks (graphs/padding.py). docs/decisions/0010 has the figures.

In int8 it runs the graphs that were quantised at export (graphs/quantised.py), and computes the rest in bf16 or fp32.

In bf16 OpenVINO computes products of matrices in bfloat16 and everything between the last of them and an output in
float32. A gate's softmax and its comparison with the threshold lie there, so a threshold of 0.98, which bfloat16 cannot
express, stays what it is; `tests/engines/test_openvino.py` holds that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

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
    is_crossing,
)
from dovit_deploy.engines.base import Array, Buffer, HostMemory
from dovit_deploy.engines.openvino_whole import give_all_tokens
from dovit_deploy.engines.square import MATRIX, SQUARE_MODEL, check_square
from dovit_deploy.errors import EnvironmentProblem, GraphMismatch, ProviderMissing
from dovit_deploy.graphs.forms import padded_passes, write_derived
from dovit_deploy.graphs.padding import VALID

DEVICE = "CPU"
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
"""Precision -> what OpenVINO lists of a CPU that computes in it; others would only imitate it."""
GRAPHS = {"int8": "int8"}
"""Precision -> that of the bundle's graphs, where it is not fp32: bf16 is made of them when they are compiled."""
STEPS = 32
"""Even steps up to all tokens. Between a quarter and three quarters, where most counts lie, each is a bucket; beyond,
every second one is, since each costs memory."""
SMALLEST = 16
"""No bucket is smaller, and none closer to the next: compiling masked attention over 8 tokens or fewer ends the process
where heads are narrow (OpenVINO 2026.4.1, 8 channels a head, fp32), and finer steps gain nothing."""


ALL_IN_ORDER = 0
"""Stands for the size of a frame in which nothing has stopped: its graph takes no `index` (openvino_whole.py)."""


class FixedGraph:
    """One graph whose sizes are all fixed, or whose one open size is decided inside of it (merged).

    Several threads may run it at once: each has a request, and with it the memory of its outputs, of its own.

    Args:
        compiled: a CompiledModel.
        described: what it is called in errors.
        inputs: their names, in order.
        outputs: likewise.
    """

    def __init__(self, compiled: Any, described: str, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:  # noqa: ANN401
        self._compiled, self._described, self._of_thread = compiled, described, threading.local()
        self._inputs, self._outputs = inputs, outputs
        runtime = packages.openvino()
        self._tensor, self._bf16 = runtime.Tensor, runtime.Type.bf16

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the graph.

        Raises:
            EnvironmentProblem: OpenVINO fails, as where memory ends.
        """
        try:
            request = self._request()
            # It takes no memory that is read-only or not in order: that is copied. It does not keep the copies, either.
            arrays = [np.require(inputs[name], requirements=["C", "W"]) for name in self._inputs]
            # Shared: the memory of the inputs is read and that of the outputs handed out, both without a copy. Tensor
            # by tensor, since `infer` with a dictionary takes longer than all between two stages.
            for position, array in enumerate(arrays):
                request.set_input_tensor(position, self._shared(array))
            request.infer(share_outputs=True)
            outputs = {name: request.get_output_tensor(position) for position, name in enumerate(self._outputs)}
            return {name: _values(tensor, self._bf16) for name, tensor in outputs.items()}
        except (RuntimeError, MemoryError) as error:
            raise EnvironmentProblem(
                f"OpenVINO failed while it ran {self._described}: {_first_line(error)}; use --engine onnxruntime"
            ) from error

    def close(self) -> None:
        """Drop the compiled graph, and with it its memory."""
        self._compiled, self._of_thread = None, threading.local()

    def _shared(self, array: Array) -> Any:  # noqa: ANN401  an ov.Tensor
        """The memory of `array` as OpenVINO takes it."""
        if array.dtype == BITS:
            return self._tensor(array, array.shape, self._bf16)
        return self._tensor(array, shared_memory=True)

    def _request(self) -> Any:  # noqa: ANN401  an InferRequest
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        return self._of_thread.request


class BucketedGraph:
    """A stage that takes `index`, compiled for a count at the first frame that needs it.

    Args:
        compiled: makes a compiled graph of a model.
        model: the padded form, as OpenVINO read it.
        total: number of tokens of the model, extra tokens included.
    """

    def __init__(self, compiled: Callable[[Any], FixedGraph], model: Any, *, total: int) -> None:  # noqa: ANN401  ov.Model
        self._compiled, self._model, self._total = compiled, model, total
        self._everything = np.arange(total)
        self._graphs: dict[int, FixedGraph] = {}
        self._compiling = threading.Lock()

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        index = inputs[INDEX]
        if np.array_equal(index, self._everything):
            return self._graph(ALL_IN_ORDER).run(inputs)
        bucket = self.size_for(len(index))
        valid = np.asarray(len(index), dtype=np.int64)
        return self._graph(bucket).run({**inputs, INDEX: padded(index, bucket, self._total), VALID: valid})

    def size_for(self, count: int) -> int:
        """The size in which `count` tokens run."""
        return bucket_for_count(count, self._total)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The counts for which it has been compiled so far; `ALL_IN_ORDER` is one of its own."""
        return tuple(sorted(self._graphs))

    def close(self) -> None:
        """Drop all compiled graphs."""
        self._graphs.clear()

    def _graph(self, bucket: int) -> FixedGraph:
        """That of a count, or of `ALL_IN_ORDER`."""
        # Who needs what is compiled does not wait for who compiles another.
        if bucket in self._graphs:
            return self._graphs[bucket]
        # Of several threads that need a bucket for the first time one compiles it, and the others wait for it.
        with self._compiling:
            if bucket not in self._graphs:
                # A clone shares the weights of what was read.
                model = self._model.clone()
                model.reshape({INDEX: [self._total if bucket == ALL_IN_ORDER else bucket]})
                if bucket == ALL_IN_ORDER:
                    give_all_tokens(model, self._total)
                self._graphs[bucket] = self._compiled(model)
            return self._graphs[bucket]


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


BITS = np.dtype(np.uint16)
"""How buffers hold bfloat16, which NumPy does not know; nothing else here has this type."""


def crossing_in_bf16(model: Any) -> Any:  # noqa: ANN401  an ov.Model
    """`model` with what one stage makes for another in bfloat16, as it is computed: 2 % of a frame in int8.

    In float32, all tokens would be converted there and back at every gate.
    """
    runtime = packages.openvino()
    steps = runtime.preprocess.PrePostProcessor(model)
    for ports, of_port in ((model.inputs, steps.input), (model.outputs, steps.output)):
        for name in (port.any_name for port in ports):
            if is_crossing(name):
                of_port(name).tensor().set_element_type(runtime.Type.bf16)
    return steps.build()


def float32_from_bits(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 as float32, of which it is the upper half: a copy."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _values(tensor: Any, bf16: Any) -> Array:  # noqa: ANN401  an ov.Tensor and an ov.Type
    """What `tensor` holds, in its memory."""
    # OpenVINO calls bfloat16 float16 here.
    values: Array = tensor.data
    return values.view(BITS) if tensor.element_type == bf16 else values


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


def bucket_for_count(count: int, total: int) -> int:
    """The smallest bucket that holds `count` of `total` tokens."""
    steps = min(STEPS, max(1, total // SMALLEST))
    step = (max(count, 1) - 1) * steps // total + 1
    if not steps < 4 * step <= 3 * steps:
        step = min(step + step % 2, steps)
    return -(-total * step // steps)


def padded(index: npt.NDArray[np.int64], bucket: int, total: int) -> npt.NDArray[np.int64]:
    """`index` (n,) filled up to (bucket,) with positions below `total` that it does not hold."""
    full = np.empty(bucket, dtype=np.int64)
    full[: len(index)] = index
    stopped = np.ones(total, dtype=bool)
    stopped[index] = False
    full[len(index) :] = np.flatnonzero(stopped)[: bucket - len(index)]
    return full


def _capabilities(core: Any) -> list[str]:  # noqa: ANN401  an ov.Core
    try:
        return list(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise ProviderMissing(f"OpenVINO has no CPU plugin that works: {_first_line(error)}") from error


@contextmanager
def _refusals(described: str) -> Iterator[None]:
    """OpenVINO's refusal of a graph as one of ours, and the end of memory as what it is."""
    try:
        yield
    except RuntimeError as error:
        raise GraphMismatch(f"OpenVINO cannot load {described}: {_first_line(error)}") from error
    except MemoryError as error:
        raise EnvironmentProblem(f"there is not enough memory for OpenVINO to load {described}") from error


def _first_line(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's sources that come before it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return lines[0] if lines else str(error)


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
