"""What runs in half precision? Matrices and activations; what would suffer from it stays in float32.

- Products of matrices, convolutions and all that moves activations about (tokens, residuals) run in float16.
- LayerNormalization, softmax, sums, divisions and the path from a gate's probabilities to its decision run in float32:
  sums over thousands of tokens overflow float16, and a decision compares with thresholds that are float32. So does the
  stopped tokens' mean, a product with a vector.
- `pixels`, `thresholds`, `floor`, `confidence` and `logits` stay float32, so that what goes into a bundle and comes
  out of it does not change. Only what crosses from one stage to the next, tokens and what is carried, is float16: it is
  float16 on both sides anyway, and half the bytes are moved.

Types are explicit (Cast nodes), as strongly typed TensorRT networks need them: no runtime has to guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.interface import is_crossing
from dovit_deploy.graphs.attention import CONTRIB
from dovit_deploy.graphs.passes import infer_types, rank, result

if TYPE_CHECKING:
    import onnx_ir as ir

MATRIX = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "MultiHeadAttention"})
"""Products of matrices, and ONNX Runtime's fused attention, which keeps its own sums in float32."""
MOVING = frozenset(
    {
        *("Add", "Sub", "Mul", "Neg", "Relu", "Gelu", "Max", "Min", "Identity", "Where"),
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Concat", "Split", "Slice", "Pad", "Tile"),
        *("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Resize", "RotaryEmbedding"),
    }
)
"""Operators that lose nothing: they take the type of their surroundings. Any operator not named runs in float32."""

TYPED_INPUTS = {"Resize": (0,)}
"""Operators of which only these inputs follow the type; the others are float32 by definition."""

NodeKind = Literal["matrix", "moving", "exact"]
"""Of an operator. matrix: in float16; moving: in the type of its surroundings; exact: in float32."""
HALF_SUFFIX = ".fp16"
"""What the name of a tensor in float16 ends in."""


def half_precision(model: ir.Model) -> ir.passes.PassResult:
    """Ensures the types that this file's docstring names, for a graph in portable or fast form and float32.

    Weights of which only the float16 form is read are left for onnx_ir's `RemoveUnusedNodesPass`.
    """
    infer_types(model)
    conversion = _Conversion(model.graph)
    conversion.run()
    return result(model, modified=conversion.modified)


@dataclass
class _Conversion:
    """One graph on its way: the type of each float value, and the conversions that were made."""

    graph: ir.Graph
    half: set[ir.Value] = field(default_factory=set)
    """Values that are made in float16."""
    full: set[ir.Value] = field(default_factory=set)
    """Values that are made in float32; values of other types are in neither."""
    converted: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """A float value -> the same in the other type."""
    modified: bool = False

    def run(self) -> None:
        nodes = list(self.graph)
        floats = _float_values(self.graph)
        kinds = {node: _kind(node) for node in nodes}
        reaching = _reaching_matrices(self.graph, floats, kinds)
        self.full.update(value for value in self.graph.initializers.values() if value in floats)
        for value in self.graph.inputs:
            if value in floats:
                self._set_type(value, half=is_crossing(str(value.name)))
        # In the graph's order: what a node takes has its type by then.
        for node in nodes:
            half = self._runs_in_half(node, kinds, reaching)
            self._convert_inputs(node, half=half)
            for value in node.outputs:
                if value in floats:
                    self._set_type(value, half=half)
        self._convert_outputs()

    def _set_type(self, value: ir.Value, *, half: bool) -> None:
        (self.half if half else self.full).add(value)
        if half:
            onnx_ir = packages.onnx_ir()
            # Not `value.dtype = ...`: that changes the type object, which a model shares with its clones.
            value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
            self.modified = True

    def _runs_in_half(self, node: ir.Node, kinds: dict[ir.Node, NodeKind], reaching: set[ir.Value]) -> bool:
        if kinds[node] != "moving":
            return kinds[node] == "matrix"
        made = [value for value in node.inputs if value is not None and not value.is_initializer()]
        halves, fulls = any(value in self.half for value in made), any(value in self.full for value in made)
        followers = [user for value in node.outputs for user, _ in value.uses()]
        if fulls and not halves and followers and all(kinds[user] == "exact" for user in followers):
            # Between two operators in float32, as the limit that keeps a norm from 0, which float16 cannot hold.
            return False
        return (halves and not fulls) or any(value in reaching for value in node.outputs)

    def _convert_inputs(self, node: ir.Node, *, half: bool) -> None:
        typed = TYPED_INPUTS.get(node.op_type, range(len(node.inputs)))
        for position, value in enumerate(node.inputs):
            if value is not None and (value in self.half or value in self.full):
                wanted = half and position in typed
                if (value in self.half) != wanted:
                    node.replace_input_with(position, self._other_type(value, node))

    def _other_type(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """`value` in float16 if it is float32, and the other way round; made once, in front of its first reader."""
        if value not in self.converted:
            self.modified = True
            name = f"{value.name}.fp32" if value in self.half else f"{value.name}{HALF_SUFFIX}"
            if value.is_initializer():
                self.converted[value] = self._half_constant(value, name)
            else:
                cast = self._cast(value, name)
                self.graph.insert_before(before, cast)
                self.converted[value] = cast.outputs[0]
        return self.converted[value]

    def _cast(self, value: ir.Value, name: str) -> ir.Node:
        onnx_ir = packages.onnx_ir()
        kind = onnx_ir.DataType.FLOAT if value in self.half else onnx_ir.DataType.FLOAT16
        output = onnx_ir.Value(name=name, shape=value.shape, type=onnx_ir.TensorType(kind))
        node: ir.Node = onnx_ir.node("Cast", [value], {"to": kind}, outputs=[output], name=f"cast.{name}")
        return node

    def _half_constant(self, value: ir.Value, name: str) -> ir.Value:
        onnx_ir, tensor = packages.onnx_ir(), value.const_value
        assert tensor is not None
        # Converted when it is written: graphs that share a weight do not each hold a copy of it.
        later = onnx_ir.LazyTensor(
            lambda: onnx_ir.tensor(_to_half(tensor.numpy()), name=name),
            dtype=onnx_ir.DataType.FLOAT16,
            shape=tensor.shape,
            name=name,
        )
        kind = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
        made: ir.Value = onnx_ir.Value(name=name, shape=tensor.shape, type=kind, const_value=later)
        self.graph.initializers[name] = made
        return made

    def _convert_outputs(self) -> None:
        """Give every output its type: float16 for tokens that cross, float32 for all other floats."""
        for position, value in enumerate(self.graph.outputs):
            if value in self.half or value in self.full:
                name = str(value.name)
                if (value in self.half) != is_crossing(name):
                    # The cast takes over the output with its name, so inside the graph the value needs another one.
                    value.name = f"{name}.inner"
                    cast = self._cast(value, name)
                    self.graph.append(cast)
                    self.graph.outputs[position] = cast.outputs[0]
                    self.modified = True


def _to_half(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rounded to float16; what is beyond its range (a mask's -1e9) becomes its largest number, infinities stay."""
    limit = np.finfo(np.float16).max
    return np.where(np.isfinite(values), np.clip(values, -limit, limit), values).astype(np.float16)


def _kind(node: ir.Node) -> NodeKind:
    if node.op_type in MATRIX:
        # A product with a vector sums over all tokens.
        vector = node.op_type == "MatMul" and any(rank(value) == 1 for value in node.inputs)
        return "exact" if vector else "matrix"
    return "moving" if node.op_type in MOVING else "exact"


def _float_values(graph: ir.Graph) -> set[ir.Value]:
    kind = packages.onnx_ir().DataType.FLOAT
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    floats = {value for value in values if value.dtype == kind}
    for node in graph:
        # Inference does not know contrib operators; those in use give what they take.
        if node.domain == CONTRIB and node.inputs[0] in floats:
            floats.update(node.outputs)
    return floats


def _reaching_matrices(graph: ir.Graph, floats: set[ir.Value], kinds: dict[ir.Node, NodeKind]) -> set[ir.Value]:
    """Float values that a product of matrices, or the next stage, takes in, directly or after other operators."""
    reaching = {value for value in graph.outputs if is_crossing(str(value.name))}
    # Backwards, so that one pass finds all that leads to a product.
    for node in reversed(graph):
        if kinds[node] == "matrix" or any(value in reaching for value in node.outputs):
            reaching.update(value for value in node.inputs if value is not None and value in floats)
    return reaching
