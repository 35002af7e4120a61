"""The padded form of a stage: `index` may be longer than what runs, and the rest is masked in the graph.

CUDA graphs and tuned kernels want few sizes, so that a token count is rounded up to the next of them. The form takes
`valid` () int64 beside `index` (kept,): the first `valid` entries run, the others are padding. Padding never shows:

- attention: keys of padding get a score of -inf, hence a weight of exactly 0;
- wherever rows are written to their positions, padding writes what stood there, so stopped tokens keep their value,
  count as stopped, and have no confidence (NaN) and no label (-1).

Entries of `index` must all differ, padding included: `order[:bucket]` of the stage before is such an index, since what
follows `count` there are the stopped tokens. With `valid` equal to the length of `index` the form computes what the
stage does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.interface import INDEX

VALID = "valid"
SAME_ENTRIES = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Sub", "Add", "Cast", "Identity"})
"""Operators that make another index of an index, entry by entry."""

Model = Any
Node = Any
Tensor = Any
Onnx = Any
"""The module; it has no types of its own."""
Scalar = Any


def with_padding(model: Model) -> Model:
    """`model` (an `onnx.ModelProto`) with the input `valid`; a graph without the input `index` comes back as it is."""
    onnx = packages.onnx()
    if all(value.name != INDEX for value in model.graph.input):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    _Padding(copy, onnx).run()
    return copy


@dataclass
class _Padding:
    """One graph on its way."""

    model: Model
    onnx: Onnx
    positions: dict[str, str] = field(default_factory=dict)
    """Name of an index, or of one made of it -> name of the places (n,) int64 of its entries in `index`."""
    running: set[str] = field(default_factory=set)
    """Values with one row for each entry of `index`."""
    products: set[str] = field(default_factory=set)
    """Products of two of those: scores of attention."""
    made: set[str] = field(default_factory=set)
    nodes: list[Any] = field(default_factory=list)

    def run(self) -> None:
        graph = self.model.graph
        nodes = [_copied(node, self.onnx) for node in graph.node]
        constants = {tensor.name: tensor for tensor in graph.initializer}
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)}
        self._number_entries()
        for node in nodes:
            self._follow(node)
            if node.op_type == "ScatterND" and node.input[1] in self.positions:
                node.input[2] = self._kept_rows(node, constants, ranks[node.input[2]])
            elif node.op_type == "Softmax" and node.input[0] in self.products:
                node.input[0] = self._without_padded_keys(node.input[0])
            self.nodes.append(node)
        graph.ClearField("node")
        graph.node.extend(self.nodes)
        graph.input.append(self.onnx.helper.make_tensor_value_info(VALID, self.onnx.TensorProto.INT64, []))
        # Shape inference names the new dimensions differently.
        graph.ClearField("value_info")

    def _number_entries(self) -> None:
        """Places 0, 1, 2, ... of the entries of `index`."""
        zero = self._constant("padding.zero", np.int64(0))
        one = self._constant("padding.one", np.int64(1))
        self._node("Shape", [INDEX], "padding.shape")
        self._node("Squeeze", ["padding.shape"], "padding.length")
        self._node("Range", [zero, "padding.length", one], "padding.places")
        self.positions[INDEX] = "padding.places"

    def _follow(self, node: Node) -> None:
        """Note which of the node's outputs are an index again, and which have a row for each entry of it."""
        taken = node.op_type == "Gather" and node.input[1] in self.positions
        if node.op_type in SAME_ENTRIES and node.input[0] in self.positions:
            self.positions[node.output[0]] = self.positions[node.input[0]]
        elif node.op_type == "Slice" and node.input[0] in self.positions:
            places = f"{node.output[0]}.places"
            self._node("Slice", [self.positions[node.input[0]], *node.input[1:]], places)
            self.positions[node.output[0]] = places
        elif node.op_type == "ScatterND":
            self.running.update(node.output if node.input[0] in self.running else ())
        elif taken or any(name in self.running for name in node.input):
            self.running.update(node.output)
        if node.op_type == "MatMul" and all(name in self.running for name in node.input):
            self.products.update(node.output)

    def _mask(self, places: str) -> str:
        """(n,) bool: true for the entries at `places` that run."""
        return self._node("Less", [places, VALID], f"{places}.runs")

    def _kept_rows(self, scatter: Node, constants: dict[str, Tensor], rank: int) -> str:
        """The scatter's updates with what stood there before in the rows of padding."""
        data, indices, updates = scatter.input
        mask = self._mask(self.positions[indices])
        for _ in range(rank - 1):
            last = self._constant("padding.last", np.asarray([-1], np.int64))
            mask = self._node("Unsqueeze", [mask, last], f"{mask}.column")
        before = self._uniform(constants[data]) if data in constants else None
        if before is None:
            before = self._node("GatherND", [data, indices], f"{scatter.output[0]}.before")
        return self._node("Where", [mask, updates, before], f"{scatter.output[0]}.kept")

    def _without_padded_keys(self, scores: str) -> str:
        """Scores (h, n, n) of attention with -inf for the keys of padding."""
        runs = self._mask(self.positions[INDEX])
        nothing = self._constant("padding.nothing", np.float32(0))
        never = self._constant("padding.never", np.float32(-np.inf))
        bias = self._node("Where", [runs, nothing, never], "padding.bias")
        return self._node("Add", [scores, bias], f"{scores}.padded")

    def _uniform(self, tensor: Tensor) -> str | None:
        """A scalar constant for a tensor that holds one value throughout, else None."""
        if tensor.external_data:
            return None
        values = self.onnx.numpy_helper.to_array(tensor)
        if values.size == 0 or not np.array_equal(values, np.full_like(values, values.flat[0]), equal_nan=True):
            return None
        return self._constant(f"{tensor.name}.uniform", values.flat[0])

    def _constant(self, name: str, value: Scalar) -> str:
        if name not in self.made:
            self.made.add(name)
            self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str) -> str:
        """Append a node unless it was made before; the output's name says what it is."""
        if output not in self.made:
            self.made.add(output)
            self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], name=output))
        return output


def _copied(node: Node, onnx: Onnx) -> Node:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


# Products of a vector with a matrix, written as weighted sums.
#
# The compiler of TensorRT for RTX 1.7.1 fails (`CHECK(is_const()) failed`) on a MatMul of a vector (n,) with a matrix
# (n, C) where the vector was scattered by an index of dynamic length; DoViT's mean of the stopped tokens is one. The
# same as Mul and ReduceSum builds, and costs nothing: the compiler fuses both.


def with_weighted_sums(model: Model) -> Model:
    """`model` (an `onnx.ModelProto`) with `v @ M` for v (n,) and M (n, C) as `sum over n of v[n] * M[n]`."""
    onnx = packages.onnx()
    copy, nodes, inferred = onnx.ModelProto(), [], onnx.shape_inference.infer_shapes(model)
    copy.CopyFrom(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.input, *inferred.graph.value_info)
    }
    for node in model.graph.node:
        if node.op_type == "MatMul" and [ranks.get(name) for name in node.input] == [1, 2]:
            nodes += _weighted_sum(node, onnx)
        else:
            nodes.append(node)
    if len(nodes) == len(model.graph.node):
        return model
    for name, axis in AXES.items():
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([axis], np.int64), name))
    copy.graph.ClearField("node")
    copy.graph.node.extend(nodes)
    return copy


AXES = {"weighted_sum.rows": 0, "weighted_sum.columns": 1}


def _weighted_sum(node: Any, onnx: Any) -> list[Any]:  # noqa: ANN401
    (vector, matrix), (result,) = node.input, node.output
    rows, columns = AXES
    column, weighted = f"{result}.column", f"{result}.weighted"
    make = onnx.helper.make_node
    return [
        make("Unsqueeze", [vector, columns], [column], name=column),
        make("Mul", [column, matrix], [weighted], name=weighted),
        make("ReduceSum", [weighted, rows], [result], name=result, keepdims=0),
    ]
