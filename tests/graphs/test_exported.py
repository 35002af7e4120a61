"""What is corrected in an exported graph: notes, duplicate tables, a product that copies a matrix."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dovit_deploy.graphs.exported import shared_tables, vector_products, without_traces


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
    model = gathers(np.array([0, 1]), np.array([1, 0]), np.array([0, 1]), np.array([[0, 1]]))
    assert shared_tables(model).modified
    assert set(model.graph.initializers) == {"t0", "t1", "t3"}
    assert [node.inputs[1].name for node in model.graph] == ["t0", "t1", "t0", "t3"]  # type: ignore[union-attr]
    assert not shared_tables(model).modified


def test_floats_and_other_types_are_left_alone() -> None:
    model = gathers(np.array([0.0]), np.array([0.0]), np.array([0], np.int32), np.array([0]))
    assert not shared_tables(model).modified
    assert len(model.graph.initializers) == 4


def test_notes_of_the_exporter_go() -> None:
    model = gathers(np.array([0, 1]))
    model.graph[0].metadata_props["stack"] = "/home/somebody/network.py"
    model.graph[0].outputs[0].metadata_props["stack"] = "/home/somebody/network.py"
    assert without_traces(model).modified
    assert b"somebody" not in ir.to_proto(model).SerializeToString()
    assert not without_traces(model).modified


def test_a_product_with_a_vector_copies_no_matrix() -> None:
    sides = {"matrix": [5, 4], "vector": [5]}
    matrix, vector = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        for name, shape in sides.items()
    )
    transpose = ir.node("Transpose", [matrix], {"perm": [1, 0]})
    product = ir.node("MatMul", [transpose.outputs[0], vector])
    nodes = [transpose, product]
    model = ir.Model(ir.Graph([matrix, vector], product.outputs, nodes=nodes, opset_imports={"": 20}), ir_version=10)
    assert vector_products(model).modified
    assert [(node.op_type, list(node.inputs)) for node in model.graph] == [("MatMul", [vector, matrix])]
    assert not vector_products(model).modified
