"""Tables of whole numbers that are equal are stored once, and the graph reads the one that is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dovit_deploy.export.to_onnx import with_shared_tables
from dovit_deploy.export.weights import WeightsFile, with_shared_weights


def gathers(*tables: np.ndarray) -> ir.Model:
    """One gather from `x` by each table."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4, 2]))
    values = [ir.Value(name=f"t{n}", const_value=ir.tensor(table)) for n, table in enumerate(tables)]
    nodes = [ir.node("Gather", [x, value]) for value in values]
    graph = ir.Graph(
        [x], [node.outputs[0] for node in nodes], nodes=nodes, initializers=values, opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def test_equal_integers_become_one() -> None:
    model = with_shared_tables(gathers(np.array([0, 1]), np.array([1, 0]), np.array([0, 1]), np.array([[0, 1]])))
    assert set(model.graph.initializers) == {"t0", "t1", "t3"}
    assert [node.inputs[1].name for node in model.graph] == ["t0", "t1", "t0", "t3"]  # type: ignore[union-attr]


def test_floats_and_other_types_are_left_alone() -> None:
    model = with_shared_tables(gathers(np.array([0.0]), np.array([0.0]), np.array([0], np.int32), np.array([0])))
    assert len(model.graph.initializers) == 4


def test_a_large_float_is_a_mask_or_a_defect(tmp_path) -> None:
    weights = WeightsFile.write(tmp_path / "weights.safetensors", {"weight": torch.zeros(2)}, {"format": "test"})
    mask = np.where(np.arange(2000) % 3 > 0, 0.0, -100.0).astype(np.float32)
    with_shared_weights(gathers(mask), weights)
    with pytest.raises(RuntimeError, match="is not a weight"):
        with_shared_weights(gathers(np.arange(2000, dtype=np.float32)), weights)
