"""What goes into every layer while the model runs, and into attention? 8 bits are made for these ranges and channels.

The observing backend speaks the engine protocol: whatever drives a session (a predictor with its windows, dense or with
thresholds) drives it, too. So the tokens that are seen are those that will run: all of them in the dense graph, and in
the stages what the gates leave.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.engines.base import Array, Buffer, HostMemory
from dovit_deploy.engines.onnxruntime import PROVIDER, session_options
from dovit_deploy.graphs.forms import write_derived
from dovit_deploy.graphs.passes import result
from dovit_deploy.graphs.quantised import Float32, products, scored_products


@dataclass(frozen=True)
class InputStatistics:
    """What went into one layer, over all images so far: all of it. A single token may hold the largest value by far, as
    the class token of DINOv2 does, and the network rests on it."""

    low: Float32
    high: Float32
    """(in,): the range of each channel, 0 included."""

    @property
    def largest(self) -> Float32:
        """(in,): the largest absolute value of each channel."""
        return np.maximum(-self.low, self.high)

    def range_over(self, divisor: Float32 | None) -> tuple[float, float]:
        """The range of all channels, each divided by its entry of `divisor` (in,), all above 0."""
        by = np.float32(1) if divisor is None else divisor
        return float((self.low / by).min()), float((self.high / by).max())


@dataclass
class Observed:
    """The statistics of all layers, filled while images run."""

    layers: dict[str, InputStatistics] = field(default_factory=dict)
    """By the names of their weights; layers that read one value share theirs."""
    results: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The range of what came out of the layers that make queries and keys, by the names of their weights."""

    def add(self, readers: Sequence[str], values: Array) -> None:
        """Count `values`, tokens (n, in) or a grid (1, in, h, w), which go into the layers `readers`."""
        others = 0 if values.ndim == 2 else (0, 2, 3)
        nothing = np.zeros(values.shape[1], np.float32)
        seen = self.layers.get(readers[0], InputStatistics(nothing, nothing))
        # Without extra tokens no token at all may be left.
        low = np.minimum(seen.low, values.min(axis=others, initial=0.0))
        high = np.maximum(seen.high, values.max(axis=others, initial=0.0))
        self.layers.update(dict.fromkeys(readers, replace(seen, low=low, high=high)))

    def add_result(self, weight: str, values: Array) -> None:
        """Count `values`, tokens (n, out), which come out of the layer `weight`."""
        low, high = self.results.get(weight, (0.0, 0.0))
        self.results[weight] = min(low, float(values.min(initial=0.0))), max(high, float(values.max(initial=0.0)))


class ObservedGraph:
    """One graph that also gives away what goes into its layers."""

    def __init__(
        self, path: Path, readers: Mapping[str, Sequence[str]], makers: Mapping[str, str], observed: Observed
    ) -> None:
        runtime = packages.onnxruntime()
        options = session_options(runtime, threads=None)
        self._session = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
        self._names = [output.name for output in self._session.get_outputs()]
        self._readers, self._makers, self._observed = readers, makers, observed

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        outputs = dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        for name, readers in self._readers.items():
            self._observed.add(readers, outputs[name])
        for name, weight in self._makers.items():
            self._observed.add_result(weight, outputs[name])
        return outputs

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class ObservingBackend(HostMemory):
    """ONNX Runtime that fills `observed` with what goes into the layers `weights`; buffers are NumPy arrays."""

    name, precision = "observing", "fp32"

    def __init__(self, weights: Collection[str], observed: Observed) -> None:
        self._weights, self._observed = weights, observed

    def load(self, bundle: Bundle, graph: str) -> ObservedGraph:
        """The fast form of `graph` with more outputs."""
        readers: dict[str, list[str]] = {}
        makers: dict[str, str] = {}

        def give_away(model: ir.Model) -> ir.passes.PassResult:
            for product in products(model):
                if product.weight in self._weights:
                    readers.setdefault(str(product.reads.name), []).append(product.weight)
            for product in scored_products(model):
                if product.weight in self._weights:
                    makers[str(product.node.outputs[0].name)] = product.weight
            given = {str(value.name) for value in model.graph.outputs}
            values = {str(value.name): value for node in model.graph for value in node.outputs}
            model.graph.outputs.extend(values[name] for name in (*readers, *makers) if name not in given)
            return result(model, modified=True)

        with TemporaryDirectory(prefix="dovit-") as copies, TemporaryDirectory(prefix="dovit-") as folder:
            path = bundle.copied_graph(graph, Path(copies), fast=True)
            write_derived([path], Path(folder), weights=[path.with_name(WEIGHTS)], passes=(give_away,))
            return ObservedGraph(Path(folder) / path.name, readers, makers, self._observed)
