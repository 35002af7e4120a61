"""The model-local functions that bear the plugins' names: what each computes, in standard operators of opset 20.

| function | takes | gives |
|---|---|---|
| `TokenGather` | tokens (N, C), index (kept,) | values (kept, C) |
| `TokenScatter` | tokens (N, C), index (kept,), values (kept, C) | output (N, C) |
| `TokenPartition` | keep (N,) of 0 and 1 | order (N,), count () |
| `TokenIndex` | keep (N,) of 0 and 1 | index (count,), size () int32 |

Positions, masks and counts are int64; `size` is int32, as TensorRT wants it of a size that the data decide.
"""

from __future__ import annotations

from typing import Any

from dovit_deploy import packages

DOMAIN = "dovit"
"""Domain of the functions, and namespace of the plugins."""
VERSION = "1"
OPSET = 20
GATHER, SCATTER, PARTITION, INDEX = "TokenGather", "TokenScatter", "TokenPartition", "TokenIndex"

Node = Any


def plugin_call(name: str, inputs: list[str], outputs: list[str], *, plugin: bool = True) -> Node:
    """A node that calls the function `name`; `plugin=False` leaves out what makes TensorRT take its plugin instead."""
    helper = packages.onnx().helper
    call = helper.make_node(name, inputs, outputs, name=f"{name}.{outputs[0]}", domain=DOMAIN)
    if plugin:
        call.attribute.append(helper.make_attribute("plugin_namespace", DOMAIN))
        call.attribute.append(helper.make_attribute("plugin_version", VERSION))
    return call


def token_functions() -> list[Any]:
    """The `onnx.FunctionProto` of every plugin."""
    make, int32 = packages.onnx().helper.make_node, packages.onnx().TensorProto.INT32
    front = [
        make("Unsqueeze", ["count", "first"], ["end"]),
        make("Slice", ["order", "first", "end", "first"], ["index"]),
        make("Cast", ["count"], ["size"], to=int32),
    ]
    scatter = [
        _constant("last", [1]),
        make("Unsqueeze", ["index", "last"], ["places"]),
        make("ScatterND", ["tokens", "places", "values"], ["output"]),
    ]
    return [
        _function(GATHER, "tokens index", "values", [make("Gather", ["tokens", "index"], ["values"], axis=0)]),
        _function(SCATTER, "tokens index values", "output", scatter),
        _function(PARTITION, "keep", "order count", _partition()),
        _function(INDEX, "keep", "index size", [*_partition(), _constant("first", [0]), *front]),
    ]


def _partition() -> list[Node]:
    """`keep` -> `order`, `count`: a cumulative sum gives each position its place, which needs no sort."""
    make = packages.onnx().helper.make_node
    return [
        _constant("zero", 0),
        _constant("one", 1),
        _constant("last", [1]),
        make("ReduceSum", ["keep"], ["count"], keepdims=0),
        make("CumSum", ["keep", "zero"], ["kept"]),
        make("Sub", ["kept", "one"], ["kept_place"]),
        make("Sub", ["one", "keep"], ["rest"]),
        make("CumSum", ["rest", "zero"], ["others"]),
        make("Add", ["count", "others"], ["behind"]),
        make("Sub", ["behind", "one"], ["other_place"]),
        make("Greater", ["keep", "zero"], ["is_kept"]),
        make("Where", ["is_kept", "kept_place", "other_place"], ["place"]),
        make("Unsqueeze", ["place", "last"], ["places"]),
        make("Shape", ["keep"], ["shape"]),
        make("Squeeze", ["shape"], ["total"]),
        make("Range", ["zero", "total", "one"], ["positions"]),
        # Every entry is overwritten: which values stand there before does not matter.
        make("ScatterND", ["keep", "places", "positions"], ["order"]),
    ]


def _function(name: str, inputs: str, outputs: str, nodes: list[Node]) -> Any:  # noqa: ANN401
    helper = packages.onnx().helper
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs.split(), outputs.split(), nodes, opset, [])


def _constant(name: str, value: int | list[int]) -> Node:
    helper, kind = packages.onnx().helper, packages.onnx().TensorProto.INT64
    shape, values = ([len(value)], value) if isinstance(value, list) else ([], [value])
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, values))
