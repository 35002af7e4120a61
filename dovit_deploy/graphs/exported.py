"""What is corrected in a graph as PyTorch's exporter leaves it, before it takes any form?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovit_deploy import packages
from dovit_deploy.graphs.passes import present, rank, result

if TYPE_CHECKING:
    import onnx_ir as ir


def without_traces(model: ir.Model) -> ir.passes.PassResult:
    """Ensures that no notes of the exporter are left: they hold stack traces with paths of the machine that exported.

    onnx_ir's own pass clears graphs and nodes; the notes on the model and on values are ours to clear.
    """
    modified = packages.onnx_ir().passes.common.ClearMetadataAndDocStringPass()(model).modified
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    modified = modified or bool(model.metadata_props) or any(value.metadata_props for value in values)
    model.metadata_props.clear()
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    return result(model, modified=bool(modified))


def vector_products(model: ir.Model) -> ir.passes.PassResult:
    """A transposed matrix times a vector becomes the vector times the matrix: the same sums, and no copy of the matrix.

    PyTorch writes the mean of the stopped tokens as `mv(tokens^T, mask)`. Exported literally, ONNX Runtime would copy
    all tokens to transpose them, which costs far more than the product itself.

    Ensures `MatMul(vector, matrix)` in place of `MatMul(Transpose(matrix, perm=(1, 0)), vector)`.
    """
    modified = False
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        transposed, vector = node.inputs
        transpose = present(transposed).producer()
        if transpose is None or rank(vector) != 1 or not _swaps_two_axes(transpose):
            continue
        node.replace_input_with(0, vector)
        node.replace_input_with(1, transpose.inputs[0])
        # Other nodes may read the transposed matrix.
        if not transpose.outputs[0].uses():
            model.graph.remove(transpose, safe=True)
        modified = True
    return result(model, modified=modified)


def _swaps_two_axes(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]


def shared_tables(model: ir.Model) -> ir.passes.PassResult:
    """Ensures that no two initializers of integers or booleans have the same shape and contents.

    The exporter writes one for every gather that reads it: window attention gathers queries, keys and values by one
    table, and all blocks of a stage by the same. onnx_ir's own pass would merge floats too, and two weights that happen
    to be equal, as biases of zero, would then be stored and found under one name.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    modified = False
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype.is_floating_point():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del model.graph.initializers[name]
            modified = True
    return result(model, modified=modified)
