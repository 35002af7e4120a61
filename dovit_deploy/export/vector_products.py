"""A transposed matrix times a vector becomes the vector times the matrix: the same sums, without copying the matrix.

PyTorch writes the mean of the stopped tokens as `mv(tokens^T, mask)`; exported literally, ONNX Runtime would copy all
tokens to transpose them, which costs far more than the product itself.
"""

from __future__ import annotations

import onnx_ir as ir


def with_vector_products(model: ir.Model) -> ir.Model:
    """`model` changed in place.

    Requires `MatMul(Transpose(matrix, perm=(1, 0)), vector)` with a vector of rank 1 wherever a vector is multiplied.
    Ensures `MatMul(vector, matrix)` there.
    """
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        transposed, vector = node.inputs
        transpose = transposed.producer() if transposed is not None else None
        if transpose is None or vector is None or not _transposes_for(transpose, vector):
            continue
        node.replace_input_with(0, vector)
        node.replace_input_with(1, transpose.inputs[0])
        if not transpose.outputs[0].uses():
            model.graph.remove(transpose, safe=True)
    return model


def _transposes_for(transpose: ir.Node, vector: ir.Value) -> bool:
    if transpose.op_type != "Transpose" or vector.shape is None or len(vector.shape) != 1:
        return False
    return list(transpose.attributes["perm"].as_ints()) == [1, 0]
