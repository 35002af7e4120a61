"""Which form computes its products in 8 bits? A table of scales goes in, and its layers are computed in whole numbers.

| form | for | a product is |
|---|---|---|
| portable | OpenVINO, any ONNX runtime | Gemm or Conv between QuantizeLinear and DequantizeLinear, which engines fuse |
| fast | ONNX Runtime | `com.microsoft.QGemm` where it was Gemm; a Conv stays as it was, in float32 |

Weights are int8, symmetric, one scale for each output channel; what goes into them is uint8 with one scale and zero
point for the tensor, fixed at export: no image changes the result of another, and zero rows need no range. The portable
form also multiplies attention's queries and keys in int8. All other arithmetic stays as it was: norms, softmax and what
it weighs, gates, the first and the last layer.

One table serves every graph of a bundle, so that staged, merged and dense have the same weights, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.graphs.attention import CONTRIB
from dovit_deploy.graphs.passes import constant, insert, present, result, source

if TYPE_CHECKING:
    import onnx_ir as ir

INT8_SUFFIX = ".int8"
"""What names of tensors of these forms end in, where the fp32 form has others of the same name."""
WEIGHT_BITS = 7
"""Of the 8: without VNNI, CPUs add two products of an unsigned and a signed byte in 16 bits, which 8 overflow."""
HEADS_FIRST = ("Transpose", "Reshape", "Mul")
"""What standard attention does to its operands: scale them and put heads first."""
LARGEST_SUM = 2**30
"""Of a bias in units of its product's scale, far from where int32 ends."""

Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """A node that multiplies what it reads with a weight of the model: a linear layer or a convolution."""

    node: ir.Node

    @property
    def weight(self) -> str:
        """Name of the weight: (out, in) of a linear layer, (out, in, h, w) of a convolution."""
        return str(present(self.node.inputs[1]).name)

    @property
    def bias(self) -> str | None:
        """Name of the bias (out,); None: it has none."""
        given = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return None if given is None else str(given.name)

    @property
    def reads(self) -> ir.Value:
        """What is multiplied: tokens (n, in), or a grid (1, in, h, w)."""
        return present(self.node.inputs[0])


def products(model: ir.Model) -> list[Product]:
    """All products of `model` that could be computed in 8 bits, in the graph's order."""
    return [Product(node) for node in model.graph if _multiplies_weight(node)]


def _multiplies_weight(node: ir.Node) -> bool:
    if node.op_type not in ("Gemm", "Conv") or node.domain or not present(node.inputs[1]).is_initializer():
        return False
    # As PyTorch exports a linear layer; anything else has its weight laid out in another way.
    plain = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0} if node.op_type == "Gemm" else {"group": 1}
    given = {name: node.attributes[name].value for name in plain if name in node.attributes}
    assumed = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0, "group": 1}
    return all({**assumed, **given}[name] == value for name, value in plain.items())


def scored_products(model: ir.Model) -> list[Product]:
    """The products of `model` whose results are queries or keys of an attention, in either form."""
    made = {one.node: one for one in products(model)}
    found = []
    for node in model.graph:
        if node.op_type == "MultiHeadAttention":
            operands = [source(value, "Unsqueeze") for value in node.inputs[:2]]
        elif node.op_type == "Softmax" and (scores := present(node.inputs[0]).producer()) is not None:
            operands = [_by_tokens(value) for value in scores.inputs] if scores.op_type == "MatMul" else []
        else:
            continue
        makers = [value.producer() for value in operands if value is not None]
        found += [made[maker] for maker in makers if maker in made]
    return found


def _by_tokens(value: ir.Value | None) -> ir.Value | None:
    """What was scaled and laid out by heads, as standard attention does, to become `value`."""
    while value is not None and (node := value.producer()) is not None and node.op_type in HEADS_FIRST:
        value = node.inputs[0]
    return value


def inner_products(model: ir.Model) -> list[Product]:
    """The products of `model` with another one before and another one after them.

    The first reads pixels and the last decides between classes: both suffer most and cost least.
    """
    found = products(model)
    forward = _reached({value for product in found for value in product.node.outputs}, model.graph)
    backward = _leading({product.reads for product in found}, model.graph)
    return [one for one in found if one.reads in forward and one.node.outputs[0] in backward]


def _reached(values: set[ir.Value], graph: ir.Graph) -> set[ir.Value]:
    """`values`, and all that is made of them."""
    reached = set(values)
    for node in graph:
        if any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
    return reached


def _leading(values: set[ir.Value], graph: ir.Graph) -> set[ir.Value]:
    """`values`, and all that they are made of."""
    leading = set(values)
    for node in reversed(graph):
        if any(value in leading for value in node.outputs):
            leading.update(value for value in node.inputs if value is not None)
    return leading


@dataclass(frozen=True)
class QuantisedLayer:
    """One product in 8 bits: its weight, its bias, and the range of what goes into it."""

    weight: Int8
    """As the fp32 weight is laid out."""
    scale: Float32
    """(out,): weight * scale is what the fp32 weight was, smoothing included."""
    bias: Float32 | None
    """(out,), smoothing included."""
    input_scale: np.float32
    input_zero_point: np.uint8

    @classmethod
    def of(cls, weight: Float32, bias: Float32 | None, *, low: float, high: float) -> QuantisedLayer:
        """The layer of `weight` and `bias` (out,) over inputs from `low` to `high`; what is beyond is cut off."""
        input_scale, zero_point = input_range(low, high)
        least = 0.0 if bias is None else np.abs(bias) / (float(input_scale) * LARGEST_SUM)
        rounded, scale = rounded_weight(weight, least=least)
        return cls(rounded, scale, bias, input_scale, zero_point)

    @property
    def whole_bias(self) -> npt.NDArray[np.int32] | None:
        """(out,): the bias in units of input_scale * scale, as sums of products are counted."""
        if self.bias is None:
            return None
        return np.rint(self.bias / (self.scale * self.input_scale).astype(np.float64)).astype(np.int32)


def rounded_weight(weight: Float32, *, bits: int = WEIGHT_BITS, least: npt.ArrayLike = 0.0) -> tuple[Int8, Float32]:
    """`weight` as int8 and its scale (out,), each output channel with its own, none below `least`."""
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0.0)
    scale = np.maximum(np.maximum(largest / limit, least), np.finfo(np.float32).tiny).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / shaped), -limit, limit).astype(np.int8), scale


def score_scale(low: float, high: float, *, bits: int = WEIGHT_BITS) -> np.float32:
    """Scale of int8 queries or keys that reach from `low` to `high`: symmetric, since both are multiplied."""
    return np.float32(max(-low, high, 1e-8) / (2 ** (bits - 1) - 1))


def input_range(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 values that reach from `low` to `high`, 0 included exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-8) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


@dataclass(frozen=True)
class QuantisationTable:
    """All scales of a model, by the names of its weights."""

    layers: Mapping[str, QuantisedLayer]
    vectors: Mapping[str, Float32] = field(default_factory=dict)
    """Norms and biases that take in what smoothing took out of the weights; the fp32 form keeps its own."""
    scores: Mapping[str, np.float32] = field(default_factory=dict)
    """Of queries and keys, by the weights of the layers that make them: the scale of their 8 bits."""

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What the forms read beside the fp32 weights, by name."""
        made: dict[str, npt.NDArray[Any]] = {f"{name}{INT8_SUFFIX}": vector for name, vector in self.vectors.items()}
        for name, layer in self.layers.items():
            made |= {f"{name}{INT8_SUFFIX}": layer.weight, f"{name}.scale": layer.scale}
            made[f"{name}.zero_point"] = np.zeros(len(layer.scale), np.int8)
            if layer.whole_bias is not None:
                made[f"{name}.whole_bias"] = layer.whole_bias
        return made

    def portable(self, model: ir.Model) -> ir.passes.PassResult:
        """A pass: products of the table's layers read 8-bit inputs and weights, between standard operators.

        Requires initializers named after the weights; ensures that of a layer in the table only its int8 form is read.
        """
        for product in scored_products(model):
            if product.weight in self.scores:
                _round_result(model.graph, product, self.scores[product.weight])
        found = self._found(model)
        for product, layer in found:
            scale, zero = _range_of_input(model.graph, product, layer)
            rounded = _made_once(product, "DequantizeLinear", [_quantised(product, scale, zero), scale, zero])
            node = product.node
            name = f"{node.outputs[0].name}.weight"
            parts = self._weight_parts(model.graph, product, layer)
            node.replace_input_with(1, insert(node, "DequantizeLinear", parts, name, {"axis": 0}))
            node.replace_input_with(0, rounded)
        self._replace_vectors(model.graph)
        return result(model, modified=bool(found))

    def fast(self, model: ir.Model) -> ir.passes.PassResult:
        """A pass: linear layers of the table become `com.microsoft.QGemm`, which computes them at once.

        Requires and ensures what `portable` does, but that convolutions stay as they are.
        """
        found = [(product, layer) for product, layer in self._found(model) if product.node.op_type == "Gemm"]
        for product, layer in found:
            self._fuse(model.graph, product, layer)
        self._replace_vectors(model.graph)
        model.graph.opset_imports[CONTRIB] = 1
        return result(model, modified=bool(found))

    def _found(self, model: ir.Model) -> list[tuple[Product, QuantisedLayer]]:
        """The products of the table's layers, all at once: the nodes are changed while they are gone through."""
        return [(one, self.layers[one.weight]) for one in products(model) if one.weight in self.layers]

    def _weight_parts(self, graph: ir.Graph, product: Product, layer: QuantisedLayer) -> list[ir.Value]:
        """int8, scale and zero point of the weight."""
        name = product.weight
        return [
            constant(graph, f"{name}{INT8_SUFFIX}", layer.weight),
            constant(graph, f"{name}.scale", layer.scale),
            constant(graph, f"{name}.zero_point", np.zeros(len(layer.scale), np.int8)),
        ]

    def _fuse(self, graph: ir.Graph, product: Product, layer: QuantisedLayer) -> None:
        onnx_ir, node = packages.onnx_ir(), product.node
        scale, zero = _range_of_input(graph, product, layer)
        inputs: list[ir.Value] = [_quantised(product, scale, zero), scale, zero]
        inputs += self._weight_parts(graph, product, layer)
        if layer.whole_bias is not None:
            inputs.append(constant(graph, f"{product.weight}.whole_bias", layer.whole_bias))
        old = node.outputs[0]
        output = onnx_ir.Value(name=old.name, shape=old.shape, type=old.type)
        attributes = {"transB": 1, "alpha": 1.0}
        fused = onnx_ir.node("QGemm", inputs, attributes, domain=CONTRIB, outputs=[output], name=node.name)
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [fused], [old], [output])

    def _replace_vectors(self, graph: ir.Graph) -> None:
        for node in list(graph):
            for position, value in enumerate(node.inputs):
                if value is not None and value.is_initializer() and str(value.name) in self.vectors:
                    vector = constant(graph, f"{value.name}{INT8_SUFFIX}", self.vectors[str(value.name)])
                    node.replace_input_with(position, vector)


def _round_result(graph: ir.Graph, product: Product, scale: np.float32) -> None:
    """Let all that read what `product` makes read it in int8."""
    made = product.node.outputs[0]
    users = [(user, position) for user, position in made.uses()]
    parts = [
        constant(graph, f"{product.weight}.output_scale", np.asarray(scale)),
        constant(graph, f"{product.weight}.output_zero_point", np.asarray(0, np.int8)),
    ]
    rounded = insert(users[0][0], "QuantizeLinear", [made, *parts], f"{made.name}.rounded")
    restored = insert(users[0][0], "DequantizeLinear", [rounded, *parts], f"{made.name}.restored")
    for user, position in users:
        user.replace_input_with(position, restored)


def _range_of_input(graph: ir.Graph, product: Product, layer: QuantisedLayer) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of what `product` reads."""
    scale = constant(graph, f"{product.weight}.input_scale", np.asarray(layer.input_scale, np.float32))
    zero = constant(graph, f"{product.weight}.input_zero_point", np.asarray(layer.input_zero_point, np.uint8))
    return scale, zero


def _quantised(product: Product, scale: ir.Value, zero: ir.Value) -> ir.Value:
    return _made_once(product, "QuantizeLinear", [product.reads, scale, zero])


def _made_once(product: Product, operator: str, inputs: list[ir.Value]) -> ir.Value:
    """The output of `operator` on `inputs`; what another product made already (q, k, v read one range) is shared."""
    for user, _ in inputs[0].uses():
        if user.op_type == operator and _constants(user.inputs) == _constants(inputs):
            shared: ir.Value = user.outputs[0]
            return shared
    return insert(product.node, operator, inputs, f"{inputs[0].name}.{operator}")


def _constants(inputs: Any) -> list[float]:  # noqa: ANN401
    """Scale and zero point among the inputs of a quantising node."""
    return [float(value.const_value.numpy()) for value in inputs[1:]]
