"""What is a pass over an ONNX graph, and which steps do all passes share?

A pass takes a model, changes it in place, and returns onnx_ir's `PassResult`: the same model, and whether its nodes or
tensors changed (types that were only inferred do not count). Its docstring says what it requires and what it ensures.
onnx_ir's own passes keep the same promise, so that a list of passes (`graphs/forms.py` holds them all) mixes both.

onnx_ir is imported when a pass runs, not with these modules: engines read names and versions from them on machines
where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dovit_deploy import packages

if TYPE_CHECKING:
    import onnx_ir as ir

Pass = Callable[["ir.Model"], "ir.passes.PassResult"]


def applied(model: ir.Model, passes: Iterable[Pass]) -> ir.passes.PassResult:
    """The result of all `passes`, in order, on a copy; `model` is left alone. Tensors are shared, not copied."""
    copy, modified = model.clone(), False
    for rewrite in passes:
        modified = rewrite(copy).modified or modified
    return result(copy, modified=modified)


def result(model: ir.Model, *, modified: bool) -> ir.passes.PassResult:
    """What a pass returns."""
    changed: ir.passes.PassResult = packages.onnx_ir().passes.PassResult(model, modified)
    return changed


def infer_types(model: ir.Model) -> None:
    """Fill in element types and shapes that follow from the operators; contrib operators are passed over."""
    # Lenient, since functions and contrib operators have no rules; values keep what the exporter wrote for them.
    inference = packages.onnx_ir().passes.common.ShapeInferencePass(
        check_type=False, strict_mode=False, data_prop=False
    )
    inference(model)


def forget_types(model: ir.Model) -> ir.passes.PassResult:
    """Ensures that no value inside the graph has a type or a shape; inputs and outputs keep theirs.

    What the exporter wrote says float32 of values that are float16 by now, and inference names new dimensions in its
    own way; readers would trust both.
    """
    inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    modified = any(value.type is not None or value.shape is not None for value in inside)
    for value in inside:
        value.type, value.shape = None, None
    return result(model, modified=modified)


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions; None where it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def present(value: ir.Value | None) -> ir.Value:
    """An input that its operator cannot do without."""
    assert value is not None
    return value


def source(value: ir.Value | None, operator: str) -> ir.Value | None:
    """The first input of the node that makes `value`, where that is this operator; else None."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == operator else None


def constant(graph: ir.Graph, name: str, values: np.ndarray[Any, Any]) -> ir.Value:
    """The initializer `name`, added where it is not there yet."""
    if name not in graph.initializers:
        onnx_ir = packages.onnx_ir()
        tensor = onnx_ir.tensor(values, name=name)
        kind = onnx_ir.TensorType(tensor.dtype)
        value = onnx_ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor)
        graph.initializers[name] = value
    return graph.initializers[name]


def insert(
    before: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Value:
    """Insert a node in front of `before`; the node and its one output, which is returned, are called `name`."""
    onnx_ir = packages.onnx_ir()
    output: ir.Value = onnx_ir.Value(name=name)
    graph = before.graph
    assert graph is not None
    graph.insert_before(before, onnx_ir.node(operator, inputs, attributes or {}, outputs=[output], name=name))
    return output
