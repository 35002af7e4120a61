"""Attention in proportion to token size, in three forms: which is fastest in ONNX Runtime.

    python benchmarks/why_not/size_bias.py -o benchmarks/results/size_bias.json

    operators  MatMul, Add of the sizes' logarithms, Softmax, MatMul
    bias       the fused operator with its `attention_bias` input
    channel    the fused operator without bias, the logarithm as one more channel of the keys (merging.py)

Three heads of 64 channels, one thread, interleaved, CPU time of the process; ratios to the fused operator alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report import at_least, output_file, publish

from dovit_deploy.bundle.interface import GraphInterface, Port
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.layers import attention
from dovit_deploy.graphs.attention import CONTRIB
from dovit_deploy.graphs.forms import FAST, PORTABLE
from dovit_deploy.graphs.passes import applied
from why_not.merging import proportional_attention

HEADS, WIDTH = 3, 192


class Plain(torch.nn.Module):
    """No sizes: `query`, `key`, `value` (n, C) -> `mixed`."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention(query, key, value, HEADS)


class Channel(torch.nn.Module):
    """The form that `merging.py` uses; takes `sizes` (n, 1) too."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return proportional_attention(query, key, value, sizes, HEADS)


def interface(count: int, *, sized: bool) -> GraphInterface:
    """Of both modules."""
    takes = tuple(Port(name, "float32", (count, WIDTH)) for name in ("query", "key", "value"))
    sizes = (Port("sizes", "float32", (count, 1)),) if sized else ()
    return GraphInterface((*takes, *sizes), (Port("mixed", "float32", (count, WIDTH)),))


def with_bias(model: ir.Model, count: int, *, fused: bool) -> ir.Model:
    """The lowered graph of `Plain` with the logarithm of a new input `sizes` (n, 1) added to the logits."""
    sizes = ir.Value(name="sizes", shape=ir.Shape((count, 1)), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(sizes)
    kind = "MultiHeadAttention" if fused else "Softmax"
    node = next(node for node in model.graph if node.op_type == kind)
    tape = ir.tape.Tape()
    shape = tape.initializer(ir.tensor(np.array([1, 1, 1, count] if fused else [1, 1, count])), name="row")
    logarithm = tape.op("Reshape", [tape.op("Log", [sizes]), shape])
    if fused:
        square = tape.initializer(ir.tensor(np.array([1, 1, count, count])), name="square")
        # The sixth input of the fused operator is the bias, as a full matrix.
        node.resize_inputs(6)
        node.replace_input_with(5, tape.op("Expand", [logarithm, square]))
    else:
        node.replace_input_with(0, tape.op("Add", [node.inputs[0], logarithm]))
    for value in tape.initializers:
        model.graph.initializers[str(value.name)] = value
    model.graph.insert_before(node, list(tape.nodes))
    return model


def models(count: int) -> dict[str, ir.Model]:
    """The graphs; all but the first take `sizes`."""
    plain = onnx_from_module(Plain(), interface(count, sized=False))
    channel = onnx_from_module(Channel(), interface(count, sized=True))
    return {
        "without sizes": applied(plain, FAST).model,
        "operators": with_bias(applied(plain, PORTABLE).model, count, fused=False),
        "bias": with_bias(applied(plain, FAST).model, count, fused=True),
        "channel": applied(channel, FAST).model,
    }


def measure(count: int, repeat: int, folder: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds, and median of form / without sizes, for `count` tokens."""
    draw = np.random.default_rng(0)
    feed = {name: draw.normal(size=(count, WIDTH)).astype(np.float32) for name in ("query", "key", "value")}
    sizes = {"sizes": draw.integers(1, 5, (count, 1)).astype(np.float32)}
    steps = {name: step_of(model, folder, feed | sizes) for name, model in models(count).items()}
    answers = [steps[name]() for name in ("operators", "bias", "channel")]
    # A form that computed something else would be measured for nothing.
    assert all(np.allclose(answer, answers[0], atol=1e-4) for answer in answers)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    base = seconds["without sizes"]
    return {
        name: {
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median(value / first for value, first in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }


def step_of(model: ir.Model, folder: Path, feed: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """One run of `model` in one thread on what it takes of `feed`."""
    path = folder / "form.onnx"
    model.graph.opset_imports.setdefault(CONTRIB, 1)
    ir.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {port.name: feed[port.name] for port in session.get_inputs()}
    return lambda: session.run(None, taken)[0]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[691, 500, 300])
    parser.add_argument("--repeat", type=at_least(1), default=40)
    parser.add_argument("-o", "--output", type=output_file)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {f"{count} tokens": measure(count, arguments.repeat, Path(folder)) for count in arguments.tokens}
    tokens = " ".join(map(str, arguments.tokens))
    command = f"python benchmarks/why_not/size_bias.py --tokens {tokens} --repeat {arguments.repeat}"
    publish({"figures": figures}, command=command, output=arguments.output)


if __name__ == "__main__":
    main()
