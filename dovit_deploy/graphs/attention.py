"""How does `dovit.Attention` become operators that a runtime knows?

The networks export attention as one node (`dovit_deploy/export/to_onnx.py`), and each form of a bundle lowers it: to
standard operators (portable), or to ONNX Runtime's fused kernel (fast). Both passes require that the node's inputs
are tokens (n, C) of known width, and ensure that no such node is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dovit_deploy import packages
from dovit_deploy.graphs.passes import present, result

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, ATTENTION = "dovit", "Attention"
CONTRIB = "com.microsoft"

Lowering = Callable[["ir.Node", "ir.tape.Tape"], "ir.Value"]


def standard_attention(model: ir.Model) -> ir.passes.PassResult:
    """Attention as Reshape, Transpose, MatMul, Softmax, MatMul: what every reader of ONNX understands."""
    return result(model, modified=_lower(model, _standard))


def fused_attention(model: ir.Model) -> ir.passes.PassResult:
    """Attention as `com.microsoft.MultiHeadAttention`, the fastest form in ONNX Runtime (docs/benchmarks.md)."""
    modified = _lower(model, _fused)
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


def _lower(model: ir.Model, lowering: Lowering) -> bool:
    """Replace every attention by what `lowering` writes on a tape; whether there was one."""
    onnx_ir, graph = packages.onnx_ir(), model.graph
    attentions = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, ATTENTION)]
    for node in attentions:
        tape = onnx_ir.tape.Tape()
        mixed, output = lowering(node, tape), node.outputs[0]
        # Under the old name, for it may be an output of the graph.
        mixed.name, mixed.shape, mixed.type = output.name, output.shape, output.type
        for value in tape.initializers:
            graph.initializers.setdefault(str(value.name), value)
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [output], [mixed])
    # No node is of this domain any more.
    declared = graph.opset_imports.pop(DOMAIN, None)
    return bool(attentions) or declared is not None


def _standard(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    tensor = packages.onnx_ir().tensor
    query, key, value = (present(part) for part in node.inputs)
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
    weights = tape.op("Softmax", [tape.op("MatMul", [by_head, keys])], {"axis": 2})
    mixed = tape.op("Transpose", [tape.op("MatMul", [weights, values])], heads_first)
    return tape.op("Reshape", [mixed, join])


def _fused(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    # The contrib operator wants a batch: tokens (1, n, C).
    batch = tape.initializer(packages.onnx_ir().tensor(np.zeros(1, dtype=np.int64)), name="attention.batch_axis")
    parts = [tape.op("Unsqueeze", [present(part), batch]) for part in node.inputs]
    attributes = {"num_heads": node.attributes["heads"].as_int()}
    mixed = tape.op("MultiHeadAttention", parts, attributes, domain=CONTRIB)
    return tape.op("Squeeze", [mixed, batch])


def _width(value: ir.Value) -> int:
    width = value.shape[1] if value.shape is not None else None
    assert isinstance(width, int)
    return width
