"""What is left of a stage in which all tokens run, in their order? No row is gathered, masked or written back.

Where nothing stops, a stage need not ask where its tokens stand: 2 % of a frame in int8, 1.5 % in bf16 (decision 0010).
The answers are the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.interface import INDEX
from dovit_deploy.engines.base import Array
from dovit_deploy.graphs.padding import VALID

# OpenVINO's, which carry no types.
Model = Any
Node = Any
Output = Any


def give_all_tokens(model: Model, total: int) -> None:
    """Let `model`, a padded form of this size, take neither `index` nor `valid`: all `total` tokens run."""
    names = [port.any_name for port in model.outputs]
    known: dict[str, Array] = {}
    """What follows from these two inputs alone, by the names of nodes that hold it."""
    for name, value in ((INDEX, np.arange(total)), (VALID, np.asarray(total))):
        parameter = model.input(name).get_node()
        _redirect(parameter.output(0), _known(known, value))
        model.remove_parameter(parameter)
    for node in model.get_ordered_ops():
        values = [known.get(source.get_node().get_friendly_name()) for source in node.input_values()]
        if any(value is not None for value in values) and all(_is_constant(source) for source in node.input_values()):
            for output, value in zip(node.outputs(), _evaluated(node), strict=False):
                _redirect(output, _known(known, value))
        elif (same := _same_value(node, values)) is not None:
            _redirect(node.output(0), same)
    for port, name in zip(model.outputs, names, strict=True):
        port.set_names({name})
    model.validate_nodes_and_infer_types()


def _same_value(node: Node, values: list[Array | None]) -> Output | None:
    """What `node` gives anyway, now that some of its inputs have known `values`; None: it has something to do."""
    kind, sources = node.get_type_name(), node.input_values()
    if kind == "Gather" and values[1] is not None:
        return _rows(sources[0], values[1])
    if kind == "ScatterNDUpdate" and values[1] is not None and _covers(sources[0], values[1][:, 0]):
        return sources[2]
    if kind == "Select" and values[0] is not None and values[0].all() and _as_large(node, sources[1]):
        return sources[1]
    if kind == "Add" and values[1] is not None and not values[1].any() and _as_large(node, sources[0]):
        return sources[0]
    return None


def _rows(data: Output, positions: Array) -> Output | None:
    """Those rows of `data` without a Gather, where they lie one behind the other."""
    if _covers(data, positions):
        return data
    first = int(positions[0]) if positions.ndim == 1 and len(positions) else 0
    if not np.array_equal(positions, np.arange(first, first + len(positions))):
        return None
    operators = packages.openvino().opset13
    bounds = (operators.constant(np.asarray([value])) for value in (first, first + len(positions), 1, 0))
    return operators.slice(data, *bounds).output(0)


def _covers(data: Output, positions: Array) -> bool:
    """Whether `positions` are all rows of `data`, in order."""
    return np.array_equal(positions, np.arange(data.get_partial_shape()[0].get_length()))


def _as_large(node: Node, source: Output) -> bool:
    return bool(node.output(0).get_partial_shape() == source.get_partial_shape())


def _is_constant(source: Output) -> bool:
    return bool(source.get_node().get_type_name() == "Constant")


def _evaluated(node: Node) -> list[Array]:
    """Its outputs; none where OpenVINO cannot evaluate it apart, which it then does when it compiles."""
    tensor = packages.openvino().Tensor
    outputs = [tensor(output.get_element_type(), output.get_shape()) for output in node.outputs()]
    done = node.evaluate(outputs, [tensor(source.get_node().data) for source in node.input_values()])
    return [np.array(output.data) for output in outputs] if done else []


def _known(known: dict[str, Array], value: Array) -> Output:
    """A constant that holds `value`, noted in `known`."""
    constant = packages.openvino().opset13.constant(value)
    known[constant.get_friendly_name()] = value
    return constant.output(0)


def _redirect(output: Output, value: Output) -> None:
    """Let all that read `output` read `value`. Not `output.replace`, which would hand over the names, too."""
    for target in output.get_target_inputs():
        target.replace_source_output(value)
