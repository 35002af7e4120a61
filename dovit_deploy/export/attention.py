"""Lowering `dovit.Attention`: to standard operators (portable form) or to ONNX Runtime's fused kernel (fast form).

Each pass requires `dovit.Attention` nodes on tokens (n, C) and ensures that none is left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from dovit_deploy.export.to_onnx import ATTENTION, DOMAIN

CONTRIB = "com.microsoft"

Lowering = Callable[[ir.Node, ir.tape.Tape], ir.Value]


def with_standard_attention(model: ir.Model) -> ir.Model:
    """Attention as Reshape, Transpose, MatMul, Softmax, MatMul: what every reader of ONNX understands."""
    return _lowered(model, _standard)


def with_fused_attention(model: ir.Model) -> ir.Model:
    """Attention as `com.microsoft.MultiHeadAttention`, the fastest form in ONNX Runtime (docs/benchmarks.md)."""
    lowered = _lowered(model, _fused)
    lowered.graph.opset_imports[CONTRIB] = 1
    return lowered


def _lowered(model: ir.Model, lowering: Lowering) -> ir.Model:
    copy = model.clone()
    for node in list(copy.graph):
        if (node.domain, node.op_type) != (DOMAIN, ATTENTION):
            continue
        tape = ir.tape.Tape()
        mixed = lowering(node, tape)
        output = node.outputs[0]
        mixed.name, mixed.shape, mixed.dtype = output.name, output.shape, output.dtype
        for value in tape.initializers:
            copy.graph.initializers.setdefault(str(value.name), value)
        ir.convenience.replace_nodes_and_values(copy.graph, node, [node], tape.nodes, [output], [mixed])
    copy.graph.opset_imports.pop(DOMAIN, None)
    return copy


def _standard(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    query, key, value = (_present(part) for part in node.inputs)
    heads, width = node.attributes["heads"].as_int(), _width(query)
    base = str(node.outputs[0].name)

    def constant(suffix: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        return tape.initializer(ir.tensor(array), name=f"{base}.{suffix}")

    # Scaling the queries, n * C values, is cheaper than scaling the h * n * n scores.
    scale = constant("scale", np.asarray((width // heads) ** -0.5, dtype=np.float32))
    split = constant("split", np.asarray([-1, heads, width // heads], dtype=np.int64))
    # Values may be wider than queries and keys (LeViT).
    wide = _width(value)
    values_split = split
    if wide != width:
        values_split = constant("values_split", np.asarray([-1, heads, wide // heads], dtype=np.int64))
    join = constant("join", np.asarray([-1, wide], dtype=np.int64))
    query = tape.op("Mul", [query, scale])
    heads_first = {"perm": [1, 0, 2]}
    by_head = tape.op("Transpose", [tape.op("Reshape", [query, split])], heads_first)
    keys = tape.op("Transpose", [tape.op("Reshape", [key, split])], {"perm": [1, 2, 0]})
    values = tape.op("Transpose", [tape.op("Reshape", [value, values_split])], heads_first)
    weights = tape.op("Softmax", [tape.op("MatMul", [by_head, keys])], {"axis": 2})
    mixed = tape.op("Transpose", [tape.op("MatMul", [weights, values])], heads_first)
    return tape.op("Reshape", [mixed, join])


def _fused(node: ir.Node, tape: ir.tape.Tape) -> ir.Value:
    batch = tape.initializer(ir.tensor(np.zeros(1, dtype=np.int64)), name="attention.batch_axis")
    parts = [tape.op("Unsqueeze", [_present(part), batch]) for part in node.inputs]
    attributes = {"num_heads": node.attributes["heads"].as_int()}
    mixed = tape.op("MultiHeadAttention", parts, attributes, domain=CONTRIB)
    return tape.op("Squeeze", [mixed, batch])


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    return int(value.shape[1])
