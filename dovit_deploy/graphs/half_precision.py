"""The fp16 form of a graph: matrices and activations in half precision, what would suffer from it in float32.

- Products of matrices, convolutions and all that moves activations about (tokens, residuals) run in float16.
- LayerNormalization, softmax, sums, divisions and the path from a gate's probabilities to its decision run in float32:
  sums over thousands of tokens overflow float16, and a decision compares with thresholds that are float32. So does the
  stopped tokens' mean, a product with a vector.
- `pixels`, `thresholds`, `floor`, `confidence` and `logits` stay float32, so that what goes into a bundle and comes
  out of it does not change. Only the tokens that cross from one stage to the next are float16: they are float16 on both
  sides anyway, and half the bytes are moved.

Types are explicit (Cast nodes), as strongly typed TensorRT networks need them; no runtime has to guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.interface import TOKENS, tokens_output
from dovit_deploy.graphs.weights import GraphWeights

CROSSING = frozenset({TOKENS, tokens_output(0), tokens_output(1)})
"""Inputs and outputs that are float16."""

MATRIX = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "MultiHeadAttention"})
"""Products of matrices, and ONNX Runtime's fused attention, which keeps its own sums in float32."""
MOVING = frozenset(
    {
        *("Add", "Sub", "Mul", "Neg", "Relu", "Gelu", "Max", "Min", "Identity", "Where"),
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Concat", "Split", "Slice", "Pad", "Tile"),
        *("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Resize"),
    }
)
"""Operators that lose nothing: they take the type of their surroundings. Any operator not named runs in float32."""

TYPED_INPUTS = {"Resize": (0,)}
"""Operators of which only these inputs follow the type; the others are float32 by definition."""

CONTRIB = "com.microsoft"
HALF, FULL = "fp16", "fp32"
Model = Any
Graph = Any
Node = Any
Tensor = Any
Onnx = Any
"""The module; it has no types of its own."""


def with_half_precision(model: Model, weights: GraphWeights) -> Model:
    """`model` (an `onnx.ModelProto`, portable or fast form) in half precision; the argument is left alone.

    Args:
        weights: where its large initializers are; those of the result are added there, as `<name>.fp16`.
    """
    onnx = packages.onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    _Conversion(copy, weights, onnx).run()
    return copy


@dataclass
class _Conversion:
    """One graph on its way: which type each value has by itself, and the casts that were made of it."""

    model: Model
    weights: GraphWeights
    onnx: Onnx
    native: dict[str, str] = field(default_factory=dict)
    """Type (`HALF` or `FULL`) in which a float value is made; other values are absent."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Float initializers that are not yet in the result, by name."""
    made: set[str] = field(default_factory=set)
    """Casts and converted initializers, by name."""
    nodes: list[Any] = field(default_factory=list)

    def run(self) -> None:
        graph = self.model.graph
        nodes = [_copied(node, self.onnx.NodeProto) for node in graph.node]
        ranks, floats = _ranks(graph), _float_values(graph, self.onnx)
        kinds = {id(node): _kind(node, ranks) for node in nodes}
        reaching, users = _reaching_matrices(nodes, graph.output, floats, kinds), _users(nodes)
        self._take_inputs(graph)
        for node in nodes:
            half = self._runs_in_half(node, kinds, floats, reaching, users)
            self._convert(node, floats, half=half)
        self._give_outputs(graph)
        graph.ClearField("node")
        graph.node.extend(self.nodes)
        # They say float32 of what is float16 now.
        graph.ClearField("value_info")

    def _take_inputs(self, graph: Graph) -> None:
        proto = self.onnx.TensorProto
        for value in graph.input:
            if value.type.tensor_type.elem_type == proto.FLOAT:
                self.native[value.name] = HALF if value.name in CROSSING else FULL
            if value.name in CROSSING:
                value.type.tensor_type.elem_type = proto.FLOAT16
        tensors = [_copied(tensor, proto) for tensor in graph.initializer]
        self.constants = {tensor.name: tensor for tensor in tensors if tensor.data_type == proto.FLOAT}
        kept = [tensor for tensor in tensors if tensor.data_type != proto.FLOAT]
        self.weights.adopt(kept)
        graph.ClearField("initializer")
        graph.initializer.extend(kept)

    def _runs_in_half(
        self, node: Node, kinds: dict[int, str], floats: set[str], reaching: set[str], users: dict[str, list[Any]]
    ) -> bool:
        kind = kinds[id(node)]
        if kind != "moving":
            return kind == "matrix"
        given = {self.native[name] for name in node.input if name in self.native}
        outputs = [name for name in node.output if name in floats]
        followers = [user for name in outputs for user in users.get(name, [])]
        if given == {FULL} and followers and all(kinds[id(user)] == "exact" for user in followers):
            # Between two operators in float32, as the limit that keeps a norm from 0, which float16 cannot hold.
            return False
        return given == {HALF} or any(name in reaching for name in outputs)

    def _convert(self, node: Node, floats: set[str], *, half: bool) -> None:
        positions = TYPED_INPUTS.get(node.op_type, range(len(node.input)))
        for position, name in enumerate(node.input):
            if name in self.native or name in self.constants:
                node.input[position] = self._as(name, HALF if half and position in positions else FULL)
        self.native.update({name: HALF if half else FULL for name in node.output if name in floats})
        self.nodes.append(node)

    def _as(self, name: str, wanted: str) -> str:
        """Name of the float value `name` in the type `wanted`, made where it is not there yet."""
        if self.native.get(name) == wanted:
            return name
        constant = name in self.constants
        converted = name if constant and wanted == FULL else f"{name}.{wanted}"
        if converted not in self.made:
            self.made.add(converted)
            if constant:
                self._add_constant(self.constants[name], converted, wanted)
            else:
                self._add_cast(name, converted, wanted)
        return converted

    def _add_constant(self, tensor: Tensor, converted: str, wanted: str) -> None:
        values = self.weights.array(tensor)
        if wanted == HALF:
            values = _to_half(values)
        self.model.graph.initializer.append(self.weights.tensor(converted, values))

    def _add_cast(self, name: str, converted: str, wanted: str) -> None:
        proto = self.onnx.TensorProto
        kind = proto.FLOAT16 if wanted == HALF else proto.FLOAT
        self.nodes.append(self.onnx.helper.make_node("Cast", [name], [converted], name=f"cast.{converted}", to=kind))

    def _give_outputs(self, graph: Graph) -> None:
        for value in graph.output:
            native = self.native.get(value.name)
            if native is None:
                continue
            wanted = HALF if value.name in CROSSING else FULL
            if wanted == HALF:
                value.type.tensor_type.elem_type = self.onnx.TensorProto.FLOAT16
            if native != wanted:
                inner = f"{value.name}.inner"
                _rename(self.nodes, value.name, inner)
                self._add_cast(inner, value.name, wanted)


def _to_half(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rounded to float16; what lies beyond its range (a mask's -1e9) becomes its largest number, infinities stay."""
    limit = np.finfo(np.float16).max
    return np.where(np.isfinite(values), np.clip(values, -limit, limit), values).astype(np.float16)


def _rename(nodes: list[Any], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def _kind(node: Node, ranks: dict[str, int]) -> str:
    """matrix: in float16; moving: in the type of its surroundings; exact: in float32."""
    if node.op_type in MATRIX:
        # A product with a vector sums over all tokens.
        vector = node.op_type == "MatMul" and any(ranks.get(name) == 1 for name in node.input)
        return "exact" if vector else "matrix"
    return "moving" if node.op_type in MOVING else "exact"


def _ranks(graph: Graph) -> dict[str, int]:
    values = (*graph.input, *graph.output, *graph.value_info)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    return {**ranks, **{tensor.name: len(tensor.dims) for tensor in graph.initializer}}


def _float_values(graph: Graph, onnx: Onnx) -> set[str]:
    kind = onnx.TensorProto.FLOAT
    values = (*graph.input, *graph.output, *graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == kind}
    for node in graph.node:
        # Inference does not know contrib operators; those in use give what they take.
        if node.domain == CONTRIB and node.input[0] in floats:
            floats.update(node.output)
    return floats


def _copied(message: Node | Tensor, kind: Any) -> Any:  # noqa: ANN401
    """A message of its own: clearing a repeated field frees those that lie in it."""
    copy = kind()
    copy.CopyFrom(message)
    return copy


def _users(nodes: list[Any]) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _reaching_matrices(nodes: list[Node], outputs: Graph, floats: set[str], kinds: dict[int, str]) -> set[str]:
    """Float values that a product of matrices, or the next stage, takes in, directly or after other operators."""
    reaching = {value.name for value in outputs if value.name in CROSSING}
    for node in reversed(nodes):
        if kinds[id(node)] == "matrix" or any(name in reaching for name in node.output):
            reaching.update(name for name in node.input if name in floats)
    return reaching
