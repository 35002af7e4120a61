"""Which nodes become calls of functions that TensorRT knows as plugins? Those that move tokens about.

| function | takes | gives |
|---|---|---|
| `TokenGather` | tokens (N, C), index (kept,) | values (kept, C): the rows at these positions |
| `TokenScatter` | tokens (N, C), index (kept,), values (kept, C) | output (N, C): tokens with these rows replaced |
| `TokenScatterValid` | tokens, index, values, valid () | output (N, C): only the first `valid` positions count |
| `TokenPartition` | keep (N,) of 0 and 1 | order (N,), count (): a mask's stable order, and how many it keeps |
| `TokenIndex` | keep (N,) of 0 and 1 | index (count,), size () int32: the kept positions alone |

Positions, masks and counts are int64; `size` is int32, as TensorRT wants it of a size that the data decide. With
`TokenIndex` the merged graph can be one engine.

`TokenScatterValid` is what a scatter is where padding is masked (padding.py): without it, what stood in the rows of
padding is gathered and chosen first, in two kernels more.

All are model-local functions, and the calling nodes name a plugin. So one file serves both: ONNX Runtime runs the
bodies and computes what the portable graph computes, bit for bit; TensorRT takes its plugins of these names, or the
bodies where the two attributes are absent. No weights are touched: external data stays where the graph says it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dovit_deploy import packages
from dovit_deploy.graphs.passes import infer_types, present, rank, result, source

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "dovit"
"""Domain of the functions, and namespace of the plugins."""
VERSION = "1"
GATHER, SCATTER, SCATTER_VALID = "TokenGather", "TokenScatter", "TokenScatterValid"
PARTITION, INDEX = "TokenPartition", "TokenIndex"

# A cumulative sum gives each position where it goes in the order, which needs no sort: kept positions one after the
# other, and behind them the rest.
_ORDER = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    last = Constant <value = int64[1] {1}> ()
    count = ReduceSum <keepdims = 0> (keep)
    kept = CumSum (keep, zero)
    kept_target = Sub (kept, one)
    rest = Sub (one, keep)
    others = CumSum (rest, zero)
    behind = Add (count, others)
    other_target = Sub (behind, one)
    is_kept = Greater (keep, zero)
    target = Where (is_kept, kept_target, other_target)
    targets = Unsqueeze (target, last)
    shape = Shape (keep)
    total = Squeeze (shape)
    positions = Range (zero, total, one)
    order = ScatterND (keep, targets, positions)
"""

# In the textual syntax of the ONNX standard. The scatter of `order` overwrites every entry: which values `keep` has
# there does not matter.
BODIES = {
    GATHER: """(tokens, index) => (values) {
    values = Gather <axis = 0> (tokens, index)
}""",
    SCATTER: """(tokens, index, values) => (output) {
    last = Constant <value = int64[1] {1}> ()
    targets = Unsqueeze (index, last)
    output = ScatterND (tokens, targets, values)
}""",
    SCATTER_VALID: """(tokens, index, values, valid) => (output) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    last = Constant <value = int64[1] {1}> ()
    shape = Shape (index)
    length = Squeeze (shape)
    entries = Range (zero, length, one)
    runs = Less (entries, valid)
    mask = Unsqueeze (runs, last)
    targets = Unsqueeze (index, last)
    before = GatherND (tokens, targets)
    kept = Where (mask, values, before)
    output = ScatterND (tokens, targets, kept)
}""",
    PARTITION: f"(keep) => (order, count) {{{_ORDER}}}",
    INDEX: f"""(keep) => (index, size) {{{_ORDER}
    first = Constant <value = int64[1] {{0}}> ()
    end = Unsqueeze (count, first)
    index = Slice (order, first, end, first)
    size = Cast <to = 6> (count)
}}""",
}


def token_functions() -> dict[str, ir.Function]:
    """The functions by name, in operators of opset 20."""
    onnx, onnx_ir = packages.onnx(), packages.onnx_ir()
    heading = f'<domain: "{DOMAIN}", opset_import: ["" : 20]>'
    texts = {name: f"{heading}\n{name} {body}" for name, body in BODIES.items()}
    return {name: onnx_ir.serde.deserialize_function(onnx.parser.parse_function(text)) for name, text in texts.items()}


def plugin_call(
    name: str, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value], *, plugin: bool = True
) -> ir.Node:
    """A node that calls the function `name`; `plugin=False` leaves out what makes TensorRT take its plugin instead."""
    named = {"plugin_namespace": DOMAIN, "plugin_version": VERSION} if plugin else {}
    call: ir.Node = packages.onnx_ir().node(
        name, inputs, named, domain=DOMAIN, outputs=outputs, name=f"{name}.{outputs[0].name}"
    )
    return call


def plugin_calls(model: ir.Model) -> Counter[str]:
    """How many nodes of `model` call each plugin: what an engine's layer table must show again."""
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def plugin_form(model: ir.Model) -> ir.passes.PassResult:
    """Calls of the functions in place of the standard operators that do the same.

    Replaced are gathers and scatters of whole rows of a float matrix, tokens (N, C), at positions (kept,) that are
    computed when the graph runs, and the cumulative sums that order a mask. Rows at constant positions stay as they
    are: engines make plain copies of them.

    Requires standard operators. Ensures that the functions called are in the model. What only the replaced nodes read
    is left for onnx_ir's `RemoveUnusedNodesPass`.
    """
    infer_types(model)
    modified = False
    # Of a copy of the list, because nodes are replaced; one that is gone has no graph any more.
    for node in list(model.graph):
        if node.op_type in ("Gather", "GatherND", "ScatterND"):
            modified = _replace_rows(model.graph, node) or modified
        if node.op_type == "ScatterND" and node.graph is not None:
            modified = _replace_order(model.graph, node) or modified
    called = plugin_calls(model)
    if called:
        model.graph.opset_imports[DOMAIN] = 1
        for name, function in token_functions().items():
            if name in called:
                model.functions[function.identifier()] = function
    return result(model, modified=modified)


def _replace_rows(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace a node that takes whole rows, or puts them back, by a call; whether it is one."""
    kinds = packages.onnx_ir().DataType
    # GatherND and ScatterND take each position as a row of one number: the index is what stands before that Unsqueeze.
    index = node.inputs[1] if node.op_type == "Gather" else source(node.inputs[1], "Unsqueeze")
    if not _computed(node.inputs[0], 2, kinds.FLOAT, kinds.FLOAT16) or not _computed(index, 1, kinds.INT64):
        return False
    if any(node.attributes[name].as_int() != 0 for name in ("axis", "batch_dims") if name in node.attributes):
        return False
    if "reduction" in node.attributes and node.attributes["reduction"].as_string() != "none":
        return False
    padded = _padded_rows(node, index) if node.op_type == "ScatterND" else None
    if padded is not None:
        _replace(graph, node, SCATTER_VALID, [node.inputs[0], index, *padded])
    else:
        name = SCATTER if node.op_type == "ScatterND" else GATHER
        _replace(graph, node, name, [node.inputs[0], index, *node.inputs[2:]])
    return True


def _padded_rows(scatter: ir.Node, index: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None] | None:
    """The values, and how many entries of `index` are valid, of a scatter that writes back what stood in other rows."""
    where = present(scatter.inputs[2]).producer()
    if where is None or where.op_type != "Where":
        return None
    runs, values, before = where.inputs
    mask, taken = source(runs, "Unsqueeze"), present(before).producer()
    less = None if mask is None else mask.producer()
    # Taken may be a call already: the nodes of a graph are replaced in their order.
    same_rows = taken is not None and taken.op_type in ("GatherND", GATHER) and taken.inputs[0] is scatter.inputs[0]
    if less is None or less.op_type != "Less" or taken is None or not same_rows:
        return None
    taken_at = taken.inputs[1] if taken.op_type == GATHER else source(taken.inputs[1], "Unsqueeze")
    if taken_at is not index or not _numbers_entries(less.inputs[0], index):
        return None
    return values, less.inputs[1]


def _numbers_entries(value: ir.Value | None, index: ir.Value | None) -> bool:
    """Whether `value` is 0, 1, 2, ... for the entries of `index`."""
    counting = present(value).producer()
    if counting is None or counting.op_type != "Range":
        return False
    start, end, _ = counting.inputs
    first = present(start).const_value
    shape = source(source(end, "Squeeze"), "Shape")
    return shape is not None and shape is index and first is not None and not first.numpy().any()


def _computed(value: ir.Value | None, dimensions: int, *kinds: ir.DataType) -> bool:
    """Whether a value of one of these types and this rank is made when the graph runs."""
    return value is not None and not value.is_initializer() and value.dtype in kinds and rank(value) == dimensions


def _replace_order(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace the order of a mask, which `node` scatters, or, where it is only cut to its count, what is cut."""
    keep = _ordered_mask(node)
    counts = [] if keep is None else [user for user in keep.consumers() if user.op_type == "ReduceSum"]
    # The function gives order and count together: without exactly one count there is nothing to replace.
    if len(counts) != 1:
        return False
    order, count = node.outputs[0], counts[0].outputs[0]
    readers = list(order.consumers())
    # In the merged graph, which cuts the order itself. A stage gives away the whole order.
    if readers and not order.is_graph_output() and all(_is_front(reader, count) for reader in readers):
        for reader in readers:
            _replace(graph, reader, INDEX, [keep], further=f"{reader.outputs[0].name}.size")
        return True
    # The call stands where the count was made, in front of everything that reads either output.
    values = [packages.onnx_ir().Value(), packages.onnx_ir().Value()]
    values[0].name, values[1].name = order.name, count.name
    call = plugin_call(PARTITION, [keep], values)
    convenience = packages.onnx_ir().convenience
    convenience.replace_nodes_and_values(graph, counts[0], [], [call], [order, count], values)
    graph.remove([node, counts[0]], safe=True)
    return True


def _replace(
    graph: ir.Graph, node: ir.Node, name: str, inputs: Sequence[ir.Value | None], further: str | None = None
) -> None:
    """A call of the function `name` in place of `node`; `further` names a second output, which is not read."""
    onnx_ir, output = packages.onnx_ir(), node.outputs[0]
    values = [onnx_ir.Value(name=called) for called in (output.name, further) if called is not None]
    call = plugin_call(name, inputs, values)
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [call], [output], values[:1])


def _ordered_mask(node: ir.Node) -> ir.Value | None:
    """The mask whose order `node` scatters: target = keep > 0 ? cumsum(keep) - 1 : ..., or None."""
    targets = source(node.inputs[1], "Unsqueeze")
    where = targets.producer() if targets is not None else None
    if where is None or where.op_type != "Where":
        return None
    keep = source(where.inputs[0], "Greater")
    return keep if keep is not None and keep is source(source(where.inputs[1], "Sub"), "CumSum") else None


def _is_front(node: ir.Node, count: ir.Value) -> bool:
    """Whether `node` cuts an order to its first `count` entries."""
    return node.op_type == "Slice" and count in (source(node.inputs[2], "Reshape"), source(node.inputs[2], "Unsqueeze"))
