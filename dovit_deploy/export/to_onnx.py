"""One PyTorch module -> one ONNX graph with standard operators, `dovit.Attention` and named weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from onnx.defs import OpSchema

from dovit_deploy.bundle.interface import INDEX, KEPT, GraphInterface, Port

# A transposed matrix times a vector becomes the vector times the matrix: the same sums, without copying the matrix.
#
# PyTorch writes the mean of the stopped tokens as `mv(tokens^T, mask)`; exported literally, ONNX Runtime would copy all
# tokens to transpose them, which costs far more than the product itself.


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


# Equal tables of whole numbers become one: the exporter writes one for every gather that reads it.
#
# Window attention gathers queries, keys and values by one table, and all blocks of a stage by the same.


def with_shared_tables(model: ir.Model) -> ir.Model:
    """`model` changed in place.

    Ensures that no two initializers of integers or booleans have the same shape and contents.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype.is_floating_point():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is value:
            continue
        ir.convenience.replace_all_uses_with(value, first)
        del model.graph.initializers[name]
    return model


OPSET = 20
DOMAIN = "dovit"
ATTENTION = "Attention"

_TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64}


def _attention_operator() -> onnxscript.values.Op:
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        ATTENTION,
        DOMAIN,
        1,
        inputs=[parameter(name, "T") for name in ("query", "key", "value")],
        outputs=[parameter("mixed", "T")],
        type_constraints=[("T", ["tensor(float)"], "tokens")],
        attributes=[OpSchema.Attribute("heads", OpSchema.AttrType.INT, required=True)],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), ATTENTION, schema)


_ATTENTION = _attention_operator()


def _translate_attention(query: Any, key: Any, value: Any, heads: int) -> Any:  # noqa: ANN401
    return _ATTENTION(query, key, value, heads=heads)


def onnx_from_module(module: torch.nn.Module, interface: GraphInterface) -> ir.Model:
    """Export `module` with the inputs and outputs of `interface`, in order.

    The attention stays one node `dovit.Attention`, which `passes` lower; weights keep the names of the module's
    parameters.
    """
    examples = tuple(_example(port) for port in interface.takes)
    shapes = tuple({0: torch.export.Dim(KEPT, min=1)} if KEPT in port.shape else None for port in interface.takes)
    with _quiet():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(interface.inputs),
            output_names=list(interface.outputs),
            dynamic_shapes=shapes,
            custom_translation_table={torch.ops.dovit.attention.default: _translate_attention},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return with_shared_tables(with_vector_products(_without_traces(program.model)))


def _without_traces(model: ir.Model) -> ir.Model:
    """Drop the exporter's notes on every node: they hold stack traces with paths of the machine that exported."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
    for value in model.graph.inputs:
        value.metadata_props.clear()
    return model


def _example(port: Port) -> torch.Tensor:
    # Any count but 0 and 1 serves: the exporter would treat those as constants.
    shape = [3 if side == KEPT else int(side) for side in port.shape]
    if port.name == INDEX:
        return torch.arange(shape[0])
    return torch.zeros(shape, dtype=_TORCH_TYPES[port.dtype])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages it does not need and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
