"""How can `index` be longer than what runs? The rest is padding, which the graph masks.

CUDA graphs and tuned kernels want few sizes, so a token count is rounded up to the next of them. The padded form takes
`valid` () int64 beside `index` (kept,): the first `valid` entries run, the others are padding. Padding never shows:

- attention: keys of padding get a score of -inf, hence a weight of exactly 0; keys that stand behind those of what runs
  (pooled context) keep theirs;
- wherever rows are written to their positions, padding writes what stood there, so stopped tokens keep their value,
  count as stopped, and have no confidence (NaN) and no label (-1).

Entries of `index` must all differ, padding included: `order[:bucket]` of the stage before is such an index, since what
follows `count` there are the stopped tokens. With `valid` equal to the length of `index` the form computes what the
stage does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.interface import INDEX
from dovit_deploy.graphs.passes import constant, infer_types, insert, present, rank, result

if TYPE_CHECKING:
    import onnx_ir as ir

VALID = "valid"
SAME_ENTRIES = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Sub", "Add", "Cast", "Identity"})
"""Operators that make another index of an index, entry by entry."""


def padding(model: ir.Model) -> ir.passes.PassResult:
    """Ensures the input `valid`, and that padding does not show; a graph without the input `index` is left alone."""
    index = next((value for value in model.graph.inputs if value.name == INDEX), None)
    if index is None:
        return result(model, modified=False)
    infer_types(model)
    onnx_ir = packages.onnx_ir()
    scalar = onnx_ir.TensorType(onnx_ir.DataType.INT64)
    valid = onnx_ir.Value(name=VALID, shape=onnx_ir.Shape([]), type=scalar)
    model.graph.inputs.append(valid)
    _Padding(model.graph, index, valid).run()
    return result(model, modified=True)


@dataclass
class _Padding:
    """One graph, followed from `index` on: which values hold positions, which have a row for each entry."""

    graph: ir.Graph
    index: ir.Value
    valid: ir.Value
    entries: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """An index, or what was made of one -> (n,) int64: which entries of `index` its own entries are."""
    running: set[ir.Value] = field(default_factory=set)
    """Values with one row for each entry of `index`."""
    scores: set[ir.Value] = field(default_factory=set)
    """Products of two of those: scores of attention."""
    tails: dict[ir.Value, int] = field(default_factory=dict)
    """Values of `running`, and scores by their keys -> how many rows of something else stand behind those."""
    masks: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Numbers of entries -> true for those that run."""
    biases: dict[int, ir.Value] = field(default_factory=dict)
    """Rows of something else -> (n + rows,) float32, added to scores: 0, or -inf where the key is padding."""

    def run(self) -> None:
        nodes = list(self.graph)
        self._number_entries(nodes[0])
        for node in nodes:
            self._follow(node)
            # Only after `_follow`, which knows nothing of the values inserted here.
            if node.op_type == "ScatterND" and node.inputs[1] in self.entries:
                node.replace_input_with(2, self._kept_rows(node))
            elif node.op_type == "Softmax" and node.inputs[0] in self.scores:
                node.replace_input_with(0, self._without_padded_keys(node))

    def _number_entries(self, first: ir.Node) -> None:
        """0, 1, 2, ... for the entries of `index`."""
        zero = constant(self.graph, "padding.zero", np.asarray(0, np.int64))
        one = constant(self.graph, "padding.one", np.asarray(1, np.int64))
        shape = insert(first, "Shape", [self.index], "padding.shape")
        length = insert(first, "Squeeze", [shape], "padding.length")
        self.entries[self.index] = insert(first, "Range", [zero, length, one], "padding.entries")

    def _follow(self, node: ir.Node) -> None:
        """Note which of the node's outputs are an index again, and which have a row for each entry of it."""
        first, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        taken = node.op_type == "Gather" and node.inputs[1] in self.entries
        if node.op_type in SAME_ENTRIES and first in self.entries:
            self.entries[output] = self.entries[first]
        elif node.op_type == "Slice" and first in self.entries:
            # Extra tokens are cut off the front: the same cut says which entries are left.
            cut = [self.entries[first], *node.inputs[1:]]
            self.entries[output] = insert(node, "Slice", cut, f"{output.name}.entries")
        elif node.op_type == "ScatterND":
            # The result has the rows of what is written into, whatever the updates have.
            self.running.update(node.outputs if first in self.running else ())
        elif taken or any(value in self.running for value in node.inputs):
            self.running.update(node.outputs)
        self._follow_tail(node)
        # Queries times keys, among others; a product with weights has only one such side.
        if (node.op_type == "MatMul" and all(value in self.running for value in node.inputs)) or (
            node.op_type == "Add" and first in self.scores
        ):
            self.scores.add(output)

    def _follow_tail(self, node: ir.Node) -> None:
        """Note how many rows of something else stand behind those of `index` in what `node` makes of them."""
        inputs = [present(value) for value in node.inputs if value in self.running]
        if not inputs or node.op_type == "ScatterND":
            return
        rows = max(self.tails.get(value, 0) for value in inputs)
        if node.op_type == "Concat" and node.attributes["axis"].as_int() == 0 and node.inputs[0] in self.running:
            rows += sum(_rows(present(value)) for value in node.inputs if value not in self.running)
        elif node.op_type == "MatMul" and inputs[0] in self.tails:
            # Over the keys, which are summed up here.
            rows = 0
        if rows:
            self.tails.update(dict.fromkeys(node.outputs, rows))

    def _mask(self, entries: ir.Value, before: ir.Node) -> ir.Value:
        """(n,) bool: true for those of `entries` that run."""
        if entries not in self.masks:
            self.masks[entries] = insert(before, "Less", [entries, self.valid], f"{entries.name}.runs")
        return self.masks[entries]

    def _kept_rows(self, scatter: ir.Node) -> ir.Value:
        """The scatter's updates with what stood there before in the rows of padding."""
        data, indices, updates = (present(value) for value in scatter.inputs)
        name, rows = scatter.outputs[0].name, rank(updates)
        assert rows is not None
        mask = self._mask(self.entries[indices], scatter)
        if rows > 1:
            axes = constant(self.graph, f"padding.axes{rows}", np.arange(1, rows, dtype=np.int64))
            mask = insert(scatter, "Unsqueeze", [mask, axes], f"{name}.runs")
        # Where rows go into a tensor of one value (NaN, -1), that value needs no gather.
        before = self._uniform(data) or insert(scatter, "GatherND", [data, indices], f"{name}.before")
        return insert(scatter, "Where", [mask, updates, before], f"{name}.kept")

    def _without_padded_keys(self, softmax: ir.Node) -> ir.Value:
        """Scores (h, n, m) of attention with -inf for the keys of padding."""
        scores = present(softmax.inputs[0])
        tail, added = self.tails.get(scores, 0), scores.producer()
        if added is not None and added.op_type == "Add":
            # What is added to them already takes it in: one sum over all scores, not two.
            parts = [added.inputs[1], self._bias(tail, added)]
            added.replace_input_with(1, insert(added, "Add", parts, f"{scores.name}.bias"))
            return scores
        return insert(softmax, "Add", [scores, self._bias(tail, softmax)], f"{scores.name}.padded")

    def _bias(self, tail: int, before: ir.Node) -> ir.Value:
        """What is added to scores whose last `tail` keys are none of `index`."""
        if 0 not in self.biases:
            runs = self._mask(self.entries[self.index], before)
            nothing = constant(self.graph, "padding.nothing", np.asarray(0, np.float32))
            never = constant(self.graph, "padding.never", np.asarray(-np.inf, np.float32))
            self.biases[0] = insert(before, "Where", [runs, nothing, never], "padding.bias")
        if tail not in self.biases:
            zeros = constant(self.graph, f"padding.seen{tail}", np.zeros(tail, np.float32))
            parts = [self.biases[0], zeros]
            self.biases[tail] = insert(before, "Concat", parts, f"padding.bias{tail}", {"axis": 0})
        return self.biases[tail]

    def _uniform(self, value: ir.Value) -> ir.Value | None:
        """A scalar constant for a tensor that holds one value throughout, as NaN and -1; else None."""
        tensor = value.const_value
        if tensor is None or isinstance(tensor, packages.onnx_ir().ExternalTensor):
            return None
        values = tensor.numpy()
        if values.size == 0 or not np.array_equal(values, np.full_like(values, values.flat[0]), equal_nan=True):
            return None
        return constant(self.graph, f"{value.name}.uniform", np.asarray(values.flat[0]))


def _rows(value: ir.Value) -> int:
    """How many rows `value` has, whatever runs."""
    rows = None if value.shape is None else value.shape[0]
    assert isinstance(rows, int)
    return rows


def weighted_sums(model: ir.Model) -> ir.passes.PassResult:
    """Products of a vector with a matrix, written as weighted sums.

    The compiler of TensorRT for RTX 1.7.1 fails (`CHECK(is_const()) failed`) on a MatMul of a vector (n,) with a matrix
    (n, C) where the vector was scattered by an index of dynamic length; DoViT's mean of the stopped tokens is one. The
    same as Mul and ReduceSum builds, and costs nothing: the compiler fuses both.

    Ensures `sum over n of v[n] * M[n]` in place of `v @ M` for v (n,) and M (n, C).
    """
    infer_types(model)
    products = [node for node in model.graph if node.op_type == "MatMul" and [*map(rank, node.inputs)] == [1, 2]]
    for node in products:
        (vector, matrix), name = node.inputs, node.outputs[0].name
        columns = constant(model.graph, "weighted_sum.columns", np.asarray([1], np.int64))
        column = insert(node, "Unsqueeze", [vector, columns], f"{name}.column")
        weighted = insert(node, "Mul", [column, matrix], f"{name}.weighted")
        # The node keeps its output, so that nothing behind it changes.
        node.op_type = "ReduceSum"
        node.replace_input_with(0, weighted)
        node.replace_input_with(1, constant(model.graph, "weighted_sum.rows", np.asarray([0], np.int64)))
        node.attributes.add(packages.onnx_ir().AttrInt64("keepdims", 0))
    return result(model, modified=bool(products))
