"""How do the stages become the merged graph? Joined by a Slice, so that one file runs the whole model anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dovit_deploy.bundle.interface import (
    COUNT,
    FLOOR,
    INDEX,
    KEPT,
    LOGITS,
    MERGED,
    ORDER,
    THRESHOLDS,
    TOKENS,
    GraphInterface,
    Port,
    carried_from_outputs,
    stage_name,
    tokens_output,
)
from dovit_deploy.graphs.passes import constant

_TYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def merged_from_stages(stages: list[ir.Model], interface: GraphInterface, total: int) -> ir.Model:
    """One graph with `interface` (`pixels`, `thresholds` (gates, K), `floor` -> `logits`, `kept`).

    Requires stage graphs as `graph_interfaces` describes them; ensures the same arithmetic, node for node.

    Args:
        stages: exported stages in order, at least two.
        interface: of the merged graph.
        total: tokens that enter the first stage.
    """
    given = {port.name: _value(port) for port in interface.takes}
    opsets = dict(stages[0].graph.opset_imports)
    graph = ir.Graph(list(given.values()), [], nodes=[], opset_imports=opsets, name=MERGED)
    # The first entry of `kept` is a constant: all tokens enter stage 0.
    counts = [_integers(graph, "total", [total])]
    one, zero = _integers(graph, "one_entry", [1]), _integers(graph, "zero", [0])
    inputs, carried = dict(given), dict[str, ir.Value]()
    for number, stage in enumerate(stages[:-1]):
        row = _integers(graph, f"gate{number}", number)
        inputs[THRESHOLDS] = _append(graph, "Gather", [given[THRESHOLDS], row], {"axis": 0})
        outputs = _inline(graph, stage, number, inputs)
        # Slice wants its bounds as vectors, a stage gives a scalar.
        count = _append(graph, "Reshape", [outputs[COUNT], one])
        port = Port(f"{stage_name(number)}.{INDEX}", "int64", (f"{KEPT}{number + 1}",))
        index = _append(graph, "Slice", [outputs[ORDER], zero, count, zero], output=_value(port))
        counts.append(count)
        tokens = outputs[tokens_output(number)]
        carried |= carried_from_outputs(outputs)
        inputs = {TOKENS: tokens, INDEX: index, FLOOR: given[FLOOR], **carried}
    outputs = _inline(graph, stages[-1], len(stages) - 1, inputs)
    kept = _append(graph, "Concat", counts, {"axis": 0})
    for value, port in zip((outputs[LOGITS], kept), interface.gives, strict=True):
        value.name, value.shape, value.dtype = port.name, ir.Shape(list(port.shape)), _TYPES[port.dtype]
        graph.outputs.append(value)
    return ir.Model(graph, ir_version=stages[0].ir_version)


def _value(port: Port) -> ir.Value:
    return ir.Value(name=port.name, shape=ir.Shape(list(port.shape)), type=ir.TensorType(_TYPES[port.dtype]))


def _integers(graph: ir.Graph, name: str, values: int | list[int]) -> ir.Value:
    return constant(graph, f"{MERGED}.{name}", np.asarray(values, dtype=np.int64))


def _append(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, int] | None = None,
    *,
    output: ir.Value | None = None,
) -> ir.Value:
    """The output of a new node at the end of `graph`."""
    node = ir.node(operator, inputs, attributes, outputs=None if output is None else [output])
    graph.append(node)
    return node.outputs[0]


def _inline(graph: ir.Graph, stage: ir.Model, number: int, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Append a copy of the stage's nodes to `graph`, fed from `inputs`; returns its outputs by name."""
    prefix, body = stage_name(number), stage.clone().graph
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        # Weights have dots in their names, keep them and are shared; constants of one stage must not meet another's.
        value.name = name if "." in name else f"{prefix}.{name}"
        shared = graph.initializers.setdefault(value.name, value)
        if shared is not value:
            value.replace_all_uses_with(shared)
    # Before the nodes are renamed, while outputs still have the names of the interface.
    outputs = {str(value.name): value for value in body.outputs}
    body.outputs.clear()
    for value in body.inputs:
        value.replace_all_uses_with(inputs[str(value.name)])
    for node in list(body):
        body.remove(node)
        for value in node.outputs:
            value.name = f"{prefix}.{value.name}"
            value.shape = _renamed(value.shape, number)
        node.name = f"{prefix}.{node.name}"
        graph.append(node)
    return outputs


def _renamed(shape: ir.Shape | None, number: int) -> ir.Shape | None:
    """Each stage's count gets a name of its own: one name for several counts would be a false promise."""
    if shape is None or shape.is_static():
        return shape
    return ir.Shape([side if isinstance(side, int) else str(side).replace(KEPT, f"{KEPT}{number}") for side in shape])
