"""Products of a vector with a matrix, written as weighted sums.

The compiler of TensorRT for RTX 1.7.1 fails (`CHECK(is_const()) failed`) on a MatMul of a vector (n,) with a matrix
(n, C) where the vector was scattered by an index of dynamic length; DoViT's mean of the stopped tokens is one. The
same as Mul and ReduceSum builds, and costs nothing: the compiler fuses both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dovit_deploy import packages

Model = Any


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
