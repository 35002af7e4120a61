"""How does one compiled graph run, and a stage whose token count is another one at every frame?

A graph compiled for a size that is open until it runs is prepared anew at every change of the token count: 1 to 3.5 ms
a stage of road-tiny, a quarter of its time, and half a megabyte for every count seen. So the later stages are
compiled for a few counts (buckets), and a frame runs in the smallest that holds its tokens; the rest of `index` is
padding, which the graph masks (graphs/padding.py). docs/decisions/0010 has the figures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.bundle.interface import INDEX, is_crossing
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.engines.openvino_whole import give_all_tokens
from dovit_deploy.errors import EnvironmentProblem
from dovit_deploy.graphs.padding import VALID

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
                f"OpenVINO failed while it ran {self._described}: {first_line(error)}; use --engine onnxruntime"
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


def first_line(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's sources that come before it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return lines[0] if lines else str(error)
