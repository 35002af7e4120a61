"""The plugin form of a graph: what moves tokens about becomes calls of functions that TensorRT knows as plugins.

- `dovit::TokenGather` and `dovit::TokenScatter` take rows of tokens and put them back;
- `dovit::TokenPartition` gives the stable order of a keep mask and its count;
- `dovit::TokenIndex` gives the kept positions alone, as many as the data decide: so the merged graph can be one engine.

All are model-local functions, and the calling nodes name a plugin. So one file serves both worlds:
ONNX Runtime runs the bodies and computes what the portable graph computes, bit for bit; TensorRT takes its plugins of
these names, or the bodies where the two attributes are absent. No weights are touched: external data stays where the
graph says it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dovit_deploy import packages

# The model-local functions that bear the plugins' names: what each computes, in standard operators of opset 20.
#
# | function | takes | gives |
# |---|---|---|
# | `TokenGather` | tokens (N, C), index (kept,) | values (kept, C) |
# | `TokenScatter` | tokens (N, C), index (kept,), values (kept, C) | output (N, C) |
# | `TokenPartition` | keep (N,) of 0 and 1 | order (N,), count () |
# | `TokenIndex` | keep (N,) of 0 and 1 | index (count,), size () int32 |
#
# Positions, masks and counts are int64; `size` is int32, as TensorRT wants it of a size that the data decide.

DOMAIN = "dovit"
"""Domain of the functions, and namespace of the plugins."""
VERSION = "1"
OPSET = 20
GATHER, SCATTER, PARTITION, INDEX = "TokenGather", "TokenScatter", "TokenPartition", "TokenIndex"


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


Model = Any
Node = Any


def with_plugins(model: Model) -> Model:
    """`model` (an `onnx.ModelProto` with standard operators) in the plugin form; the argument is left alone.

    Replaced are gathers and scatters of whole rows of a float matrix, tokens (N, C), at positions (kept,) that are
    computed when the graph runs, and the cumulative sums that order a mask. Rows at constant positions stay as they
    are: engines make plain copies of them.
    """
    onnx = packages.onnx()
    nodes = _Graph.of(model, onnx).in_plugin_form()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    if not called:
        return copy
    copy.graph.ClearField("node")
    copy.graph.node.extend(nodes)
    copy.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    copy.functions.extend(function for function in token_functions() if function.name in called)
    return copy


def plugin_calls(model: Model) -> Counter[str]:
    """How many nodes of `model` call each plugin: what an engine's layer table must show again."""
    return Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)


@dataclass(frozen=True)
class _Graph:
    """A graph's nodes, by what they make, and the ranks of what may be tokens or an index."""

    nodes: list[Node]
    makers: dict[str, Node]
    ranks: dict[str, int]
    outputs: frozenset[str]

    @classmethod
    def of(cls, model: Model, onnx: Any) -> _Graph:  # noqa: ANN401
        nodes = list(model.graph.node)
        makers = {output: node for node in nodes for output in node.output}
        ranks = _ranks(onnx.shape_inference.infer_shapes(model), onnx)
        return cls(nodes, makers, ranks, frozenset(value.name for value in model.graph.output))

    def in_plugin_form(self) -> list[Node]:
        """The nodes with calls in place of those that calls replace, and without those that nobody reads any more."""
        replaced: dict[str, Node] = {}
        for node in self.nodes:
            call = self._rows_call(node)
            if call is not None:
                replaced[node.output[0]] = call
            elif node.op_type == "ScatterND":
                replaced.update(self._partition_calls(node))
        nodes: list[Node] = [replaced.get(node.output[0], node) for node in self.nodes]
        # A partition's count has no node of its own any more.
        made = {output for call in replaced.values() for output in call.output[1:]}
        return self._read([node for node in nodes if node.domain == DOMAIN or not made.intersection(node.output)])

    def _rows_call(self, node: Node) -> Node | None:
        """The call that takes or puts back the rows that `node` does, or None."""
        if node.op_type not in ("Gather", "GatherND", "ScatterND") or self.ranks.get(node.input[0]) != 2:
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if any(attributes[name].i != 0 for name in ("axis", "batch_dims") if name in attributes):
            return None
        if "reduction" in attributes and attributes["reduction"].s != b"none":
            return None
        index = node.input[1] if node.op_type == "Gather" else self._source(node.input[1], "Unsqueeze")
        if index is None or self.ranks.get(index) != 1:
            return None
        if node.op_type == "ScatterND":
            return plugin_call(SCATTER, [node.input[0], index, node.input[2]], list(node.output))
        return plugin_call(GATHER, [node.input[0], index], list(node.output))

    def _partition_calls(self, node: Node) -> dict[str, Node]:
        """The calls that replace the order that `node` scatters, or, where it is cut to its count, what is cut."""
        keep = self._ordered_mask(node)
        counts = [other for other in self.nodes if other.op_type == "ReduceSum" and other.input[0] == keep]
        if keep is None or len(counts) != 1:
            return {}
        order, count = node.output[0], counts[0].output[0]
        readers = [other for other in self.nodes if order in other.input]
        if order not in self.outputs and readers and all(self._is_front(other, count) for other in readers):
            return {
                other.output[0]: plugin_call(INDEX, [keep], [other.output[0], f"{other.output[0]}.size"])
                for other in readers
            }
        return {order: plugin_call(PARTITION, [keep], [order, count])}

    def _ordered_mask(self, node: Node) -> str | None:
        """The mask whose order `node` scatters: place = keep > 0 ? cumsum(keep) - 1 : ..., or None."""
        place = self.makers.get(self._source(node.input[1], "Unsqueeze") or "")
        if place is None or place.op_type != "Where":
            return None
        keep = self._source(place.input[0], "Greater")
        summed = self._source(self._source(place.input[1], "Sub") or "", "CumSum")
        return keep if keep is not None and keep == summed else None

    def _is_front(self, node: Node, count: str) -> bool:
        """Whether `node` cuts an order to its first `count` entries."""
        return node.op_type == "Slice" and count in (
            self._source(node.input[2], "Reshape"),
            self._source(node.input[2], "Unsqueeze"),
        )

    def _source(self, name: str, operator: str) -> str | None:
        """The first input of the node that makes `name`, if it is this operator."""
        maker = self.makers.get(name)
        return str(maker.input[0]) if maker is not None and maker.op_type == operator else None

    def _read(self, nodes: list[Node]) -> list[Node]:
        """Copies of `nodes` without those that nobody reads."""
        wanted, kept = set(self.outputs), []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                copy = packages.onnx().NodeProto()
                copy.CopyFrom(node)
                kept.append(copy)
        return kept[::-1]


def _ranks(model: Model, onnx: Any) -> dict[str, int]:  # noqa: ANN401
    """Rank of what may be tokens (float, a matrix) or an index (int64, a vector), constants left out."""
    kinds = {onnx.TensorProto.FLOAT: 2, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT64: 1}
    constant = {tensor.name for tensor in model.graph.initializer}
    ranks = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        rank = len(kind.shape.dim)
        if value.name not in constant and kind.HasField("shape") and kinds.get(kind.elem_type) == rank:
            ranks[value.name] = rank
    return ranks
