"""What TensorRT reads: graphs derived from a bundle's portable ones, with their weights beside them.

The passes, in order: weighted sums (what the compiler cannot take otherwise), padding (token counts rounded up), half
precision, plugins. All derived graphs of one build share one `weights.safetensors`,
of the tensors that they take and in the precision in which they take them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import graph_file
from dovit_deploy.graphs.half_precision import with_half_precision
from dovit_deploy.graphs.padding import with_padding, with_weighted_sums
from dovit_deploy.graphs.plugins import plugin_calls, with_plugins
from dovit_deploy.graphs.weights import GraphWeights

PRECISIONS = ("fp16", "fp32")

SOURCES = (
    *("graphs/derived", "graphs/weights", "graphs/padding", "graphs/half_precision", "graphs/plugins"),
    *("engines/tensorrt/build", "engines/tensorrt/builder"),
)
"""The files that decide what is in an engine."""


@dataclass(frozen=True)
class DerivedGraph:
    """A graph as TensorRT will read it."""

    name: str
    path: Path
    attention: int
    """How many attentions it holds."""
    plugin_calls: Counter[str]


def forms_digest() -> str:
    """SHA-256 of the code that decides what is in an engine: when it changes, older engines are not taken."""
    here, digest = Path(__file__).parent.parent, hashlib.sha256()
    for name in SOURCES:
        digest.update(f"{name}\n".encode())
        digest.update((here / f"{name}.py").read_bytes())
    return digest.hexdigest()


def derive_graphs(
    bundle: Bundle, names: Sequence[str], folder: Path, *, precision: str, plugins: bool
) -> tuple[list[DerivedGraph], Path]:
    """Write the derived form of the graphs called `names` to `folder`; also gives the path of their weights.

    Raises:
        PackageMissing: `onnx` is not installed.
        OSError: the folder cannot be written.
    """
    onnx = packages.onnx()
    weights = GraphWeights(bundle.weights)
    models = {}
    for name in names:
        portable = onnx.load(str(bundle.graph(name)), load_external_data=False)
        models[name] = _derived(portable, weights, precision=precision, plugins=plugins)
    weights_path = weights.write(folder, models.values())
    graphs = []
    for name, model in models.items():
        path = folder / graph_file(name)
        path.write_bytes(model.SerializeToString(deterministic=True))
        graphs.append(DerivedGraph(name, path, attentions(model), plugin_calls(model)))
    return graphs, weights_path


def _derived(model: Any, weights: GraphWeights, *, precision: str, plugins: bool) -> Any:  # noqa: ANN401
    """`model` after all passes; its large initializers are in `weights`."""
    model = with_padding(with_weighted_sums(model))
    if precision == "fp16":
        model = with_half_precision(model, weights)
    else:
        weights.adopt(model.graph.initializer)
    return with_plugins(model) if plugins else model


def attentions(model: Any) -> int:  # noqa: ANN401
    """How many attentions `model` (an `onnx.ModelProto`) holds: softmaxes between two products of matrices."""
    makers = {output: node for node in model.graph.node for output in node.output}

    def maker_behind(name: str) -> str:
        """Operator that made `name`, seen through casts and the padding's mask."""
        node = makers.get(name)
        while node is not None and node.op_type in ("Cast", "Add"):
            node = makers.get(node.input[0])
        return node.op_type if node is not None else ""

    # A gate's softmax follows a Gemm.
    return sum(node.op_type == "Softmax" and maker_behind(node.input[0]) == "MatMul" for node in model.graph.node)
