"""The merged graph: the stages joined by a Slice, so that one file runs the whole dynamic model anywhere."""

from __future__ import annotations

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
    stage_name,
    tokens_output,
)

_TYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def merged_from_stages(stages: list[ir.Model], interface: GraphInterface, total: int) -> ir.Model:
    """One graph with `interface` (`pixels`, `thresholds` (gates, K), `floor` -> `logits`, `kept`).

    Requires stage graphs as `graph_interfaces` describes them; ensures the same arithmetic, node for node.

    Args:
        stages: exported stages in order, at least two.
        interface: of the merged graph.
        total: tokens that enter the first stage.
    """
    inputs = {port.name: _value(port) for port in interface.takes}
    tape = ir.tape.Tape()
    nodes: list[ir.Node] = []
    initializers: dict[str, ir.Value] = {}
    current: dict[str, ir.Value] = dict(inputs)
    counts = [_constant(initializers, "merged.total", np.asarray([total], dtype=np.int64))]
    one = _constant(initializers, "merged.one_entry", np.asarray([1], dtype=np.int64))
    zero = _constant(initializers, "merged.zero", np.asarray([0], dtype=np.int64))
    for number, stage in enumerate(stages):
        if number < len(stages) - 1:
            row = _constant(initializers, f"merged.gate{number}", np.asarray(number, dtype=np.int64))
            current[THRESHOLDS] = _joined(tape, nodes, "Gather", [inputs[THRESHOLDS], row], {"axis": 0})
        outputs = _inlined(stage, number, current, nodes, initializers)
        if LOGITS in outputs:
            break
        count = _joined(tape, nodes, "Reshape", [outputs[COUNT], one])
        index = _joined(tape, nodes, "Slice", [outputs[ORDER], zero, count, zero])
        index.name, index.shape, index.dtype = (
            f"{stage_name(number)}.{INDEX}",
            ir.Shape([f"{KEPT}{number + 1}"]),
            _TYPES["int64"],
        )
        counts.append(count)
        current = {
            TOKENS: outputs[tokens_output(number)],
            INDEX: index,
            FLOOR: inputs[FLOOR],
        }
    kept = _joined(tape, nodes, "Concat", counts, {"axis": 0})
    for value, port in zip((outputs[LOGITS], kept), interface.gives, strict=True):
        value.name, value.shape, value.dtype = port.name, ir.Shape(list(port.shape)), _TYPES[port.dtype]
    graph = ir.Graph(
        list(inputs.values()),
        [outputs[LOGITS], kept],
        nodes=nodes,
        initializers=list(initializers.values()),
        opset_imports=dict(stages[0].graph.opset_imports),
        name=MERGED,
    )
    return ir.Model(graph, ir_version=stages[0].ir_version)


def _value(port: Port) -> ir.Value:
    return ir.Value(name=port.name, shape=ir.Shape(list(port.shape)), type=ir.TensorType(_TYPES[port.dtype]))


def _constant(
    initializers: dict[str, ir.Value], name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    initializers[name] = value
    return value


def _joined(
    tape: ir.tape.Tape,
    nodes: list[ir.Node],
    operator: str,
    inputs: list[ir.Value],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    value = tape.op(operator, inputs, attributes)
    producer = value.producer()
    assert producer is not None
    nodes.append(producer)
    return value


def _inlined(
    stage: ir.Model,
    number: int,
    current: dict[str, ir.Value],
    nodes: list[ir.Node],
    initializers: dict[str, ir.Value],
) -> dict[str, ir.Value]:
    """Move a copy of the stage's nodes into `nodes`, fed from `current`; returns its outputs by name."""
    prefix, graph = stage_name(number), stage.clone().graph
    for value in list(graph.initializers.values()):
        name = str(value.name)
        del graph.initializers[name]
        # Weights keep their names and are shared; the stage's own constants are told apart.
        value.name = name if "." in name else f"{prefix}.{name}"
        shared = initializers.setdefault(value.name, value)
        if shared is not value:
            value.replace_all_uses_with(shared)
    outputs = {str(value.name): value for value in graph.outputs}
    graph.outputs.clear()
    for value in graph.inputs:
        value.replace_all_uses_with(current[str(value.name)])
    for node in list(graph):
        graph.remove(node)
        for value in node.outputs:
            value.name = f"{prefix}.{value.name}"
            value.shape = _renamed(value.shape, number)
        node.name = f"{prefix}.{node.name}"
        nodes.append(node)
    return outputs


def _renamed(shape: ir.Shape | None, number: int) -> ir.Shape | None:
    """Each stage's count gets a name of its own: one name for several counts would be a false promise."""
    if shape is None or shape.is_static():
        return shape
    sides = [side if isinstance(side, int) else str(side).replace(KEPT, f"{KEPT}{number}") for side in shape]
    return ir.Shape(sides)
