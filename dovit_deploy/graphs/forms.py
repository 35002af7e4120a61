"""Which passes make which form of a graph, and in which order? All forms are listed here.

| form | for | written |
|---|---|---|
| portable | any ONNX runtime | into the bundle, `<graph>.onnx` |
| fast | ONNX Runtime | into the bundle, `<graph>.ort.onnx` |
| int8 | OpenVINO, any ONNX runtime | into the bundle where asked for, `<graph>.int8.onnx` |
| fast int8 | ONNX Runtime | likewise, `<graph>.int8.ort.onnx` |
| half | ONNX Runtime on a GPU | into a temporary folder, when a graph is loaded |
| padded | OpenVINO | into a temporary folder, when a graph is loaded |
| engine | TensorRT | beside the engine that is built of it |

The last three are derived from a bundle's graphs, without torch, and share a weights file of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import GraphInterface, Port, check_ports, graph_interfaces
from dovit_deploy.bundle.pointers import check_pointers_of_files
from dovit_deploy.errors import GraphMismatch
from dovit_deploy.graphs.attention import attention_count, fused_attention, standard_attention
from dovit_deploy.graphs.exported import shared_tables, vector_products, without_traces
from dovit_deploy.graphs.half_precision import HALF_SUFFIX, half_precision
from dovit_deploy.graphs.padding import padding, weighted_sums
from dovit_deploy.graphs.passes import Pass, applied, forget_types
from dovit_deploy.graphs.plugins import plugin_calls, plugin_form
from dovit_deploy.graphs.quantised import QuantisationTable
from dovit_deploy.graphs.rewritten import rounded_norms, written_rows
from dovit_deploy.graphs.weights import SharedWeights, widened

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = ("fp16", "fp32")

EXPORTED: tuple[Pass, ...] = (without_traces, vector_products, shared_tables)
"""For every graph as it comes from PyTorch's exporter."""
PORTABLE: tuple[Pass, ...] = (standard_attention,)
FAST: tuple[Pass, ...] = (fused_attention,)


def half_passes() -> tuple[Pass, ...]:
    """From the fast form to the half form."""
    return (half_precision, _unused_nodes(), forget_types)


def quantised_passes(table: QuantisationTable, *, fast: bool) -> tuple[Pass, ...]:
    """From the portable or the fast form to the one of the same kind that computes in 8 bits."""
    return (table.fast if fast else table.portable, _unused_nodes())


def padded_passes(*, open_sizes: bool = False) -> tuple[Pass, ...]:
    """From the portable form, or its int8 form, to what OpenVINO compiles: its `index` is longer than what runs.

    Of a graph with sizes that stay open (merged) roundings are left as they are, which is 2 % faster there.
    """
    rounded = () if open_sizes else (rounded_norms,)
    return (padding, written_rows, *rounded, _unused_nodes(), forget_types)


def engine_passes(*, precision: str, plugins: bool) -> tuple[Pass, ...]:
    """From the portable form to what TensorRT reads, in `precision`, one of `PRECISIONS`.

    The order matters: padding follows rows of the index, which calls of plugins would hide; half precision must see the
    values that padding adds, to give them a type; plugins take rows of either type.
    """
    passes: list[Pass] = [weighted_sums, padding]
    if precision == "fp16":
        passes.append(half_precision)
    if plugins:
        passes.append(plugin_form)
    return (*passes, _unused_nodes(), forget_types)


def _unused_nodes() -> Pass:
    """Ensures that every node and initializer that is left contributes to an output."""
    remover: Pass = packages.onnx_ir().passes.common.RemoveUnusedNodesPass()
    return remover


VERSIONS = {"weighted_sums": 2, "padding": 2, "half_precision": 2, "plugin_form": 3}
"""Raise the number of a pass of `engine_passes` when it makes another graph of the same input than before: engines in
users' caches are then built again. `tests/graphs/test_forms.py` fails when this is forgotten."""


def forms_digest() -> str:
    """SHA-256 of what turns portable graphs into those that TensorRT reads: when it changes, older engines do not fit.

    An engine's key has the digests of the graphs themselves, too. The passes count by their versions, not their source,
    so that files can be moved and comments written without building every engine again.
    """
    return hashlib.sha256(json.dumps(VERSIONS, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DerivedGraph:
    """A graph as TensorRT will read it."""

    name: str
    path: Path
    attention: int
    """How many attentions it holds."""
    plugin_calls: Counter[str]


def derive_graphs(
    bundle: Bundle, names: Sequence[str], folder: Path, *, precision: str, plugins: bool
) -> tuple[list[DerivedGraph], Path]:
    """Write the engine form of the graphs called `names` to `folder`; also gives the path of their weights.

    Raises:
        PackageMissing: `onnx` or `onnx_ir` is not installed.
        GraphMismatch: a graph takes or gives what the manifest does not promise.
        OSError: the folder cannot be written.
    """
    passes = engine_passes(precision=precision, plugins=plugins)
    # From a copy of what was checked: the bundle's own files may change at any moment.
    with TemporaryDirectory(prefix="dovit-") as copies:
        paths = {name: bundle.copied_graph(name, Path(copies)) for name in names}
        for name, path in paths.items():
            _check_graph(bundle, name, path)
        models = write_derived(list(paths.values()), folder, weights=[Path(copies) / WEIGHTS], passes=passes)
    graphs = [
        DerivedGraph(name, folder / path.name, attention_count(models[path]), plugin_calls(models[path]))
        for name, path in paths.items()
    ]
    return graphs, folder / WEIGHTS


def _check_graph(bundle: Bundle, name: str, path: Path) -> None:
    """Raise GraphMismatch unless the graph at `path` takes and gives what the manifest promises of `name`."""
    graph = _read(path).graph
    takes, gives = (tuple(map(_port, values)) for values in (graph.inputs, graph.outputs))
    check_ports(bundle.path.name, name, graph_interfaces(bundle.manifest.spec)[name], GraphInterface(takes, gives))


def _port(value: ir.Value) -> Port:
    sides = () if value.shape is None else value.shape
    shape = tuple(side if isinstance(side, int) else str(side.value) for side in sides)
    return Port(str(value.name), "unknown" if value.dtype is None else value.dtype.numpy().name, shape)


def write_derived(
    graphs: Sequence[Path], folder: Path, *, weights: Sequence[Path], passes: Sequence[Pass]
) -> dict[Path, ir.Model]:
    """Write what `passes` make of the files `graphs` to `folder`, under the same names, over one weights file.

    Args:
        weights: the safetensors files that the graphs point into.

    Returns:
        The derived models by the path that they were read from.

    Raises:
        GraphMismatch: a file holds no ONNX model, or looks for weights where they are not.
    """
    onnx_ir = packages.onnx_ir()
    read = {path: _read(path) for path in graphs}
    for path in graphs:
        check_pointers_of_files(path, weights)
    tensors = [value.const_value for model in read.values() for value in model.graph.initializers.values()]
    models = {path: applied(model, (widened, *passes)).model for path, model in read.items()}
    # Which tensors the file holds, and in which type, is known only after the passes of all graphs.
    given = SharedWeights.read(*weights)
    shared = SharedWeights.write(folder / WEIGHTS, _weights_of(models, given.tensors))
    for path, model in models.items():
        shared(model)
        onnx_ir.save(model, folder / path.name)
    for tensor in tensors:
        _close_file(tensor)
    return models


def _read(path: Path) -> ir.Model:
    onnx_ir = packages.onnx_ir()
    try:
        model: ir.Model = onnx_ir.load(path)
    except (packages.protobuf_decode_error(), onnx_ir.serde.SerdeError) as error:
        raise GraphMismatch(f"{path.name} is no ONNX graph ({str(error).splitlines()[0]})") from error
    return model


def _close_file(tensor: ir.TensorProtocol | None) -> None:
    """A tensor that was read keeps its file open and mapped, until Python some day collects what refers in circles."""
    if isinstance(tensor, packages.onnx_ir().ExternalTensor):
        # A view of it may be in use; then it closes with that.
        with suppress(BufferError):
            tensor.release()


def _weights_of(models: Mapping[Path, ir.Model], known: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """What the models read of the weights called `known`, by name, in the precision in which they read it."""
    tensors = {
        str(value.name): value.const_value
        for model in models.values()
        for value in model.graph.initializers.values()
        if str(value.name).removesuffix(HALF_SUFFIX) in known
    }
    return {name: tensor.numpy() for name, tensor in sorted(tensors.items()) if tensor is not None}
