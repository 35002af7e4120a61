"""What does OpenVINO compute faster when it is written in another way? The results stay the same, bit for bit.

Measured in stages of road-tiny, one thread (OpenVINO 2026.4.1, docs/decisions/0010).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dovit_deploy import packages
from dovit_deploy.graphs.passes import constant, insert, present, result, source

if TYPE_CHECKING:
    import onnx_ir as ir


def rounded_norms(model: ir.Model) -> ir.passes.PassResult:
    """Norms that are rounded to 8 bits, with the rounding written out.

    OpenVINO would take a norm's scale and shift into the rounding, which then has a range for every channel and falls
    out of what is fused: 3 to 4 % of a stage.

    Ensures Mul, Add, Round, Clip and Cast in place of QuantizeLinear of a LayerNormalization.
    """
    onnx_ir, graph = packages.onnx_ir(), model.graph
    found = [node for node in graph if node.op_type == "QuantizeLinear" and _is_norm(node.inputs[0])]
    for node in found:
        value, scale, zero = (present(part) for part in node.inputs)
        # A constant that the table made (graphs/quantised.py).
        assert zero.const_value is not None
        whole_zero = zero.const_value.numpy()
        name, limits = node.outputs[0].name, np.iinfo(whole_zero.dtype)
        low = constant(graph, "rounded_norms.low", np.asarray(limits.min, np.float32))
        high = constant(graph, "rounded_norms.high", np.asarray(limits.max, np.float32))
        shift = constant(graph, f"{zero.name}.float", whole_zero.astype(np.float32))
        whole = insert(node, "Round", [insert(node, "Div", [value, scale], f"{name}.steps")], f"{name}.whole")
        shifted = insert(node, "Add", [whole, shift], f"{name}.shifted")
        # The node keeps its output, so that nothing behind it changes.
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.replace_input_with(0, insert(node, "Clip", [shifted, low, high], f"{name}.clipped"))
        node.attributes.clear()
        node.attributes.add(onnx_ir.AttrInt64("to", int(onnx_ir.DataType.from_numpy(whole_zero.dtype))))
    return result(model, modified=bool(found))


def _is_norm(value: ir.Value | None) -> bool:
    producer = present(value).producer()
    return producer is not None and producer.op_type == "LayerNormalization"


def written_rows(model: ir.Model) -> ir.passes.PassResult:
    """Rows that were just written to their positions are not read back from there, and rows are read by Gather.

    Reading them back converts all tokens to bf16 first, those that stopped included; GatherND is slower than Gather.

    Requires that positions written at once all differ. Ensures that no Gather reads by a part of the list of positions
    by which a ScatterND has just written, and that no GatherND is left that reads whole rows.
    """
    modified = False
    for node in list(model.graph):
        positions = source(node.inputs[1], "Unsqueeze") if node.op_type == "GatherND" else None
        if positions is not None:
            node.op_type = "Gather"
            node.attributes.clear()
            node.replace_input_with(1, positions)
            modified = True
        elif node.op_type == "Gather" and (rows := _written_rows(node)):
            node.op_type = "Slice"
            node.attributes.clear()
            node.resize_inputs(len(rows))
            for position, value in enumerate(rows):
                node.replace_input_with(position, value)
            modified = True
    return result(model, modified=modified)


def _written_rows(gather: ir.Node) -> list[ir.Value | None]:
    """What a Slice reads instead of `gather`: the rows, and where to cut as positions were cut; empty: it cannot."""
    scatter, cut = present(gather.inputs[0]).producer(), present(gather.inputs[1]).producer()
    if cut is not None and cut.op_type == "Reshape":
        # To the list that it is.
        cut = present(cut.inputs[0]).producer()
    if scatter is None or scatter.op_type != "ScatterND" or cut is None or cut.op_type != "Slice":
        return []
    if source(scatter.inputs[1], "Unsqueeze") is not cut.inputs[0]:
        return []
    return [scatter.inputs[2], *cut.inputs[1:]]
