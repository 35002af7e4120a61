"""Attention in proportion to token size, in three forms: which is fastest in ONNX Runtime.

    python benchmarks/why_not/size_bias.py -o benchmarks/results/size_bias.json

    operators  MatMul, Add of the sizes' logarithms, Softmax, MatMul
    bias       the fused operator with its `attention_bias` input
    channel    the fused operator without bias, the logarithm as one more channel of the keys (merging.py)

Three heads of 64 channels, one thread, interleaved, CPU time of the process; ratios to the fused operator alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

# A script finds the modules of its own folder; those that benchmarks share are in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention_forms import Figures, command_line, step_of, timed

from dovit_deploy.bundle.interface import GraphInterface, Port
from dovit_deploy.export.to_onnx import onnx_from_module
from dovit_deploy.families.layers import attention
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


def measure(count: int, repeat: int, folder: Path) -> Figures:
    """Median milliseconds, and median of form / without sizes, for `count` tokens."""
    draw = np.random.default_rng(0)
    feed = {name: draw.normal(size=(count, WIDTH)).astype(np.float32) for name in ("query", "key", "value")}
    sizes = {"sizes": draw.integers(1, 5, (count, 1)).astype(np.float32)}
    steps = {name: step_of(model, folder, feed | sizes) for name, model in models(count).items()}
    answers = [steps[name]() for name in ("operators", "bias", "channel")]
    # A form that computed something else would be measured for nothing.
    assert all(np.allclose(answer, answers[0], atol=1e-4) for answer in answers)
    return timed(steps, repeat)


def main() -> None:
    """Command line."""
    command_line("why_not/size_bias.py", (__doc__ or "").splitlines()[0], counts=(691, 500, 300), measure=measure)


if __name__ == "__main__":
    main()
