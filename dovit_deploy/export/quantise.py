"""Which scales does a bundle get, and which layers stay in float32? Made once, on the dense graph, for all forms.

Statistics are those of all tokens (dense) and of the tokens that run at the bundle's thresholds. What one channel has
larger than the others is moved into the weights where the network allows it (smoothing): out of a norm into the layers
that read it, out of attention's values into its output layer. The fp32 tensors are never changed: folded copies are
part of the table.

Where all layers together lose more than is allowed, each part of a block is tried alone in 8 bits, and the worst stay
in float32, twice as many each time, until enough is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import DENSE, graph_file, graph_interfaces, stage_name, weights_file
from dovit_deploy.errors import CheckError
from dovit_deploy.export.statistics import InputStatistics, Observed, ObservingBackend
from dovit_deploy.families.registry import state_from_bundle
from dovit_deploy.graphs.forms import quantised_passes
from dovit_deploy.graphs.passes import applied, source
from dovit_deploy.graphs.quantised import (
    Float32,
    Product,
    QuantisationTable,
    QuantisedLayer,
    inner_products,
    score_scale,
)
from dovit_deploy.graphs.weights import SharedWeights, widened
from dovit_deploy.runtime.results import Answer
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import predictor_for
from dovit_deploy.sources.source import RGB, ImageSet

PRECISION = "int8"
BALANCE = 0.5
"""How much of a channel's size is moved from inputs to weights: 0 nothing, 1 all of it."""
SMALLEST = 1e-5
"""Below this a channel counts as silent, and no quotient of it is trusted."""

FullWeights = Mapping[str, Float32]
"""The fp32 weights by name."""


TRIED = 8
"""Images on which layers are tried, the first of those whose ranges count."""

Loss = Callable[[Sequence[Answer], Sequence[Answer]], float | None]
"""Points lost from the answers of float32 to others, each to the images that are tried; None: it cannot say."""


def classes_changed(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """Percent of the positions of the logits, (1, K, ...) an image, whose class changes."""
    changed = [(want.argmax(1) != got.argmax(1)).mean() for want, got in zip(before, after, strict=True)]
    return 100 * float(np.mean(changed))


@dataclass(frozen=True)
class QuantisePlan:
    """What forms in 8 bits are made with."""

    images: ImageSet[RGB]
    """Those whose ranges count, (H, W, 3) uint8."""
    allowed: float
    """Points that the dense network may lose."""
    lost: Loss = classes_changed
    """By what it is judged; where that cannot say, by the classes that change."""

    def drive(self, session: Session, *, advance: Callable[[], None] = lambda: None) -> None:
        """Run every image, dense and at the bundle's own thresholds; `advance` is called after each."""
        manifest, predictor = session.bundle.manifest, predictor_for(session)
        settings = [RunSettings.resolve(manifest)]
        if manifest.spec.has_dense:
            settings.append(RunSettings.resolve(manifest, dense=True))
        for rgb in self.images:
            for each in settings:
                predictor.run(rgb, each)
            advance()


@dataclass(frozen=True)
class Smoothing:
    """A vector (in,) that is taken out of what the layers `readers` read and put into their weights."""

    readers: tuple[str, ...]
    """Names of their weights."""
    vectors: tuple[str, ...]
    """What is divided by it: scale and bias of a norm, or the bias of the layer `writer`."""
    writer: str | None = None
    """The weight whose rows are divided, too: attention's values, which reach the output channel by channel."""


@dataclass(frozen=True)
class Unit:
    """Layers that are in 8 bits together or not at all, since smoothing joins them: attention of a block, a layer."""

    layers: tuple[str, ...]
    smoothings: tuple[Smoothing, ...]


def units_of(model: ir.Model) -> tuple[Unit, ...]:
    """The units of a graph in fast form, in its order."""
    found = {one.weight: one for one in inner_products(model)}
    smoothings = _smoothings(model, found)
    joined = {weight: frozenset([weight]) for weight in found}
    for smoothing in smoothings:
        writers = () if smoothing.writer is None else (smoothing.writer,)
        together = frozenset[str]().union(*(joined[weight] for weight in (*smoothing.readers, *writers)))
        joined.update(dict.fromkeys(together, together))
    groups = dict.fromkeys(joined.values())
    return tuple(
        Unit(
            tuple(weight for weight in found if weight in group),
            tuple(one for one in smoothings if one.readers[0] in group),
        )
        for group in groups
    )


def _smoothings(model: ir.Model, found: Mapping[str, Product]) -> list[Smoothing]:
    made = []
    layers = {one.node: weight for weight, one in found.items()}
    for node in model.graph:
        users = [user for user, _ in node.outputs[0].uses()]
        if node.op_type == "LayerNormalization" and users and all(user in layers for user in users):
            vectors = tuple(str(value.name) for value in node.inputs[1:] if value is not None)
            made.append(Smoothing(tuple(layers[user] for user in users), vectors))
        if node.op_type == "MultiHeadAttention":
            made += _smoothed_values(node, found, layers)
    return made


def _smoothed_values(node: ir.Node, found: Mapping[str, Product], layers: Mapping[ir.Node, str]) -> list[Smoothing]:
    """Of one attention in fast form: values -> Unsqueeze -> attention -> Squeeze -> output layer."""
    value = source(node.inputs[2], "Unsqueeze")
    writer = value.producer() if value is not None else None
    squeezes = [user for user, _ in node.outputs[0].uses() if user.op_type == "Squeeze"]
    users = [user for squeeze in squeezes for user, _ in squeeze.outputs[0].uses()]
    if writer is None or writer not in layers or len(users) != 1 or users[0] not in layers:
        return []
    bias = found[layers[writer]].bias
    return [Smoothing((layers[users[0]],), () if bias is None else (bias,), layers[writer])]


@dataclass(frozen=True)
class Quantisation:
    """A bundle whose products can be computed in 8 bits: its units, statistics and weights."""

    units: tuple[Unit, ...]
    biases: Mapping[str, str | None]
    """Weight of each layer -> name of its bias."""
    divisors: Mapping[Smoothing, Float32]
    inputs: Mapping[str, InputStatistics]
    results: Mapping[str, tuple[float, float]]
    """The ranges of queries and keys, by the weights of the layers that make them."""
    state: FullWeights

    @classmethod
    def observed(cls, bundle: Bundle, drive: Callable[[Session], None]) -> Quantisation:
        """Run what `drive` runs: the sizes of channels decide the smoothing, and both the ranges.

        Raises:
            CheckError: the network has no product that could be computed in 8 bits.
        """
        model = widened(ir.load(bundle.graph(reference_graph(bundle), fast=True))).model
        units = units_of(model)
        weights = [weight for unit in units for weight in unit.layers]
        if not weights:
            raise CheckError(f"{bundle.manifest.name}: no layer of this network can be computed in int8; leave it out")
        state: FullWeights = {name: tensor.numpy() for name, tensor in state_from_bundle(bundle).items()}
        seen = Observed()
        with Session(bundle, backend=ObservingBackend(weights, seen)) as session:
            drive(session)
        divisors = {one: _divisor(one, seen.layers, state) for unit in units for one in unit.smoothings}
        biases = {one.weight: one.bias for one in inner_products(model)}
        return cls(units, biases, divisors, seen.layers, seen.results, state)

    def table(self, units: Collection[Unit]) -> QuantisationTable:
        """The scales of `units`; layers of all others stay in float32."""
        state, vectors, divided = dict(self.state), dict[str, Float32](), dict[str, Float32]()
        for smoothing in (one for unit in units for one in unit.smoothings):
            divisor = self.divisors[smoothing]
            for name in smoothing.vectors:
                state[name] = vectors[name] = state[name] / divisor
            for weight in smoothing.readers:
                state[weight], divided[weight] = state[weight] * divisor, divisor
            if smoothing.writer is not None:
                state[smoothing.writer] = state[smoothing.writer] / divisor[:, None]
        layers = {weight: self._layer(weight, state, divided.get(weight)) for unit in units for weight in unit.layers}
        scores = {weight: score_scale(*self.results[weight]) for weight in layers if weight in self.results}
        return QuantisationTable(layers, vectors, scores)

    def _layer(self, weight: str, state: FullWeights, divisor: Float32 | None) -> QuantisedLayer:
        bias, (low, high) = self.biases[weight], self.inputs[weight].range_over(divisor)
        return QuantisedLayer.of(state[weight], None if bias is None else state[bias], low=low, high=high)


def write_quantised(bundle: Bundle, table: QuantisationTable) -> Bundle:
    """Write the forms in 8 bits of every graph, and the tensors that they share, into the folder of `bundle`.

    Returns:
        The bundle with this precision; its manifest does not list the files yet.
    """
    own = bundle.path / weights_file(PRECISION)
    SharedWeights.write(own, table.tensors(), {"format": "dovit-weights"})
    weights = SharedWeights.read(bundle.path / WEIGHTS, own)
    for name in graph_interfaces(bundle.manifest.spec):
        for fast in (False, True):
            model = ir.load(bundle.graph(name, fast=fast))
            finished = applied(model, (widened, *quantised_passes(table, fast=fast), weights)).model
            ir.save(finished, bundle.path / graph_file(name, fast=fast, precision=PRECISION))
    precisions = (*bundle.manifest.precisions, PRECISION)
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"precisions": precisions}))


def reference_graph(bundle: Bundle) -> str:
    """The graph whose layers are quantised: dense, which has no gates; of a model without gates the whole."""
    return DENSE if bundle.manifest.spec.has_dense else stage_name(0)


def _divisor(smoothing: Smoothing, inputs: Mapping[str, InputStatistics], state: FullWeights) -> Float32:
    """(in,), geometric mean 1: channels that are large in the input and small in the weights are divided by more."""
    seen = np.maximum(inputs[smoothing.readers[0]].largest, SMALLEST)
    columns = np.max([np.abs(state[weight]).max(axis=0) for weight in smoothing.readers], axis=0)
    divisor = seen**BALANCE / np.maximum(columns, SMALLEST) ** (1 - BALANCE)
    return np.asarray(divisor / np.exp(np.log(divisor).mean()), dtype=np.float32)
