"""How do `dovit.Attention` and `dovit.Rotation` become operators that a runtime knows?

The networks export attention as one node (`dovit_deploy/export/to_onnx.py`), and so the rotation of its queries and
keys where positions are rotary. `dovit.AttentionWithBias` also takes what is added to the scores of each key. Each form
of a bundle lowers them: to standard operators (portable), or to ONNX Runtime's own kernels (fast). The passes require
that the nodes' inputs are tokens (n, C) of known width, and ensure that no such node is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dovit_deploy import packages
from dovit_deploy.graphs.passes import present, result, source

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, ATTENTION, ROTATION = "dovit", "Attention", "Rotation"
ATTENTION_WITH_BIAS = "AttentionWithBias"
CONTRIB = "com.microsoft"

Lowering = Callable[["ir.Node", "ir.tape.Tape"], "ir.Value"]


def standard_attention(model: ir.Model) -> ir.passes.PassResult:
    """Attention as Reshape, Transpose, MatMul, Softmax, MatMul: what every reader of ONNX understands.

    Rotations become Split, Mul, Sub, Add and Concat.
    """
    lowerings = {ROTATION: _standard_rotation, ATTENTION: _standard, ATTENTION_WITH_BIAS: _standard}
    return result(model, modified=_lower(model, lowerings))


def fused_attention(model: ir.Model) -> ir.passes.PassResult:
    """Attention as `com.microsoft.MultiHeadAttention`, the fastest form in ONNX Runtime (docs/benchmarks.md).

    Rotations become `com.microsoft.RotaryEmbedding`, which adds at most 1 % to attention and its projections, where
    standard operators add 5 to 12 % (benchmarks/rotary.py).
    """
    lowerings = {ROTATION: _fused_rotation, ATTENTION: _fused, ATTENTION_WITH_BIAS: _fused}
    modified = _lower(model, lowerings)
    model.graph.opset_imports[CONTRIB] = 1
    return result(model, modified=modified)


def attention_count(model: ir.Model) -> int:
    """How many attentions in standard operators `model` holds: softmaxes of products of matrices."""
    # A gate's softmax follows a Gemm, so only attention's follows a MatMul.
    return sum(node.op_type == "Softmax" and _maker(node.inputs[0]) == "MatMul" for node in model.graph)


def _maker(value: ir.Value | None) -> str:
    """The operator that makes `value`, seen through the casts of half precision and the mask of padding."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Add"):
        node = present(node.inputs[0]).producer()
    return node.op_type if node is not None else ""


def _lower(model: ir.Model, lowerings: Mapping[str, Lowering]) -> bool:
    """Replace each of our operators by what its lowering writes on a tape; whether there was one."""
    onnx_ir, graph = packages.onnx_ir(), model.graph
    ours = [node for node in graph if node.domain == DOMAIN and node.op_type in lowerings]
    for node in ours:
        tape = onnx_ir.tape.Tape()
        made, output = lowerings[node.op_type](node, tape), node.outputs[0]
        # Under the old name, for it may be an output of the graph.
        made.name, made.shape, made.type = output.name, output.shape, output.type
        for value in tape.initializers:
            graph.initializers.setdefault(str(value.name), value)
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [output], [made])
    # Where a rotation's batch goes straight into attention, nobody reads it without.
    graph.remove([node for node in graph if node.op_type == "Squeeze" and _unread(node)], safe=True)
    # No node is of this domain any more.
    declared = graph.opset_imports.pop(DOMAIN, None)
    return bool(ours) or declared is not None


def _unread(node: ir.Node) -> bool:
    output = node.outputs[0]
    return not output.uses() and not output.is_graph_output()


def _standard(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    tensor = packages.onnx_ir().tensor
    query, key, value, *bias = (present(part) for part in node.inputs)
    heads, width = node.attributes["heads"].as_int(), _width(query)
    base = str(node.outputs[0].name)

    def initializer(suffix: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        return tape.initializer(tensor(array), name=f"{base}.{suffix}")

    # Scaling the queries, n * C values, is cheaper than scaling the h * n * n scores.
    scale = initializer("scale", np.asarray((width // heads) ** -0.5, dtype=np.float32))
    split = initializer("split", np.asarray([-1, heads, width // heads], dtype=np.int64))
    # Values may be wider than queries and keys (LeViT).
    wide = _width(value)
    values_split = split
    if wide != width:
        values_split = initializer("values_split", np.asarray([-1, heads, wide // heads], dtype=np.int64))
    join = initializer("join", np.asarray([-1, wide], dtype=np.int64))
    query = tape.op("Mul", [query, scale])
    heads_first = {"perm": [1, 0, 2]}
    by_head = tape.op("Transpose", [tape.op("Reshape", [query, split])], heads_first)
    keys = tape.op("Transpose", [tape.op("Reshape", [key, split])], {"perm": [1, 2, 0]})
    values = tape.op("Transpose", [tape.op("Reshape", [value, values_split])], heads_first)
    scores = tape.op("MatMul", [by_head, keys])
    if bias:
        scores = tape.op("Add", [scores, *bias])
    weights = tape.op("Softmax", [scores], {"axis": 2})
    mixed = tape.op("Transpose", [tape.op("MatMul", [weights, values])], heads_first)
    return tape.op("Reshape", [mixed, join])


def _fused(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    batch = _batch_axis(tape)
    parts: list[ir.Value | None] = [_batched(present(part), batch, tape) for part in node.inputs[:3]]
    if len(node.inputs) > 3:
        # Between the values and this it would take a bias of projections, and a mask.
        parts += [None, None, _bias_of_rows(present(node.inputs[3]), present(node.inputs[0]), tape)]
    attributes = {"num_heads": node.attributes["heads"].as_int()}
    mixed = tape.op("MultiHeadAttention", parts, attributes, domain=CONTRIB)
    return tape.op("Squeeze", [mixed, batch])


def _bias_of_rows(bias: ir.Value, query: ir.Value, tape: ir.tape.Tape) -> ir.Value:
    """`bias` (m,) as (1, 1, n, m), the same for each query: made once for all layers that take it."""
    made = next((user.outputs[0] for user in bias.consumers() if user.op_type == "Expand"), None)
    if made is not None:
        return made
    ones = tape.initializer(packages.onnx_ir().tensor(np.ones(2, dtype=np.int64)), name="attention.batch_and_heads")
    rows = tape.op("Shape", [query], {"start": 0, "end": 1})
    shape = tape.op("Concat", [ones, rows, tape.op("Shape", [bias])], {"axis": 0})
    return tape.op("Expand", [bias, shape])


def _batch_axis(tape: ir.tape.Tape) -> ir.Value:
    # The contrib operators want a batch: tokens (1, n, C).
    return tape.initializer(packages.onnx_ir().tensor(np.zeros(1, dtype=np.int64)), name="attention.batch_axis")


def _batched(tokens: ir.Value, batch: ir.Value, tape: ir.tape.Tape) -> ir.Value:
    """`tokens` (n, C) as (1, n, C): what a rotation gave before its batch was taken off, or with one put on."""
    before = source(tokens, "Squeeze")
    return tape.op("Unsqueeze", [tokens, batch]) if before is None else before


def _standard_rotation(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    tensor = packages.onnx_ir().tensor
    tokens, cosines, sines = (present(part) for part in node.inputs)
    heads, width = node.attributes["heads"].as_int(), _width(tokens)
    # One name for all rotations of this many heads: they share the constants.
    base = f"rotation.{heads}x{width // heads}"
    split = tape.initializer(tensor(np.asarray([-1, heads, width // heads])), name=f"{base}.split")
    join = tape.initializer(tensor(np.asarray([-1, width])), name=f"{base}.join")
    axis = tape.initializer(tensor(np.ones(1, dtype=np.int64)), name="rotation.head_axis")
    cosines, sines = (tape.op("Unsqueeze", [table, axis]) for table in (cosines, sines))
    halves = {"axis": 2, "num_outputs": 2}
    first, second = tape.op_multi_out("Split", [tape.op("Reshape", [tokens, split])], halves, num_outputs=2)
    turned_first = tape.op("Sub", [tape.op("Mul", [first, cosines]), tape.op("Mul", [second, sines])])
    turned_second = tape.op("Add", [tape.op("Mul", [second, cosines]), tape.op("Mul", [first, sines])])
    return tape.op("Reshape", [tape.op("Concat", [turned_first, turned_second], {"axis": 2}), join])


def _fused_rotation(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    tokens, cosines, sines = (present(part) for part in node.inputs)
    batch = _batch_axis(tape)
    # Rows of the tables are those of the tokens already: position i is row i.
    inputs = [tape.op("Unsqueeze", [tokens, batch]), batch, cosines, sines]
    attributes = {"num_heads": node.attributes["heads"].as_int(), "interleaved": 0}
    turned = tape.op("RotaryEmbedding", inputs, attributes, domain=CONTRIB)
    return tape.op("Squeeze", [turned, batch])


def _width(value: ir.Value) -> int:
    width = value.shape[1] if value.shape is not None else None
    assert isinstance(width, int)
    return width
