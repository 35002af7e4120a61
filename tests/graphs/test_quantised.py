"""8 bits: the arithmetic of scales, and which nodes of which graphs are computed in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import graph_interfaces, weights_file
from dovit_deploy.graphs.quantised import (
    QuantisationTable,
    QuantisedLayer,
    inner_products,
    input_range,
    rounded_weight,
    score_scale,
    scored_products,
)

LARGEST_PAIR = 2**15 - 1
"""What a sum of two products of bytes may reach where CPUs add them in 16 bits."""


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 6), (3, 2, 3, 3), (1, 1)]), st.floats(1e-6, 1e6))
def test_a_weight_is_off_by_half_a_step_and_two_products_fit_16_bits(seed: int, shape: tuple, size: float) -> None:
    weight = (size * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    rounded, scale = rounded_weight(weight)
    steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
    assert (np.abs(rounded * steps - weight) <= 0.5001 * steps).all()
    assert 2 * 255 * int(np.abs(rounded).max()) <= LARGEST_PAIR


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_range_holds_its_ends_and_zero_exactly(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale, zero = input_range(low, high)
    for value in (low, high, 0.0):
        byte = np.clip(np.rint(value / float(scale)) + int(zero), 0, 255)
        assert abs((byte - int(zero)) * float(scale) - value) <= 1.01 * float(scale)
    assert float(scale) > 0


def test_a_silent_channel_keeps_its_bias() -> None:
    """Its weights give it a scale near 0, in which the bias would be larger than any int32."""
    weight = np.array([[0.0, 0.0], [1e-30, 0.0], [0.5, -1.0]], np.float32)
    layer = QuantisedLayer.of(weight, np.array([3.0, -3.0, 0.25], np.float32), low=-1e-6, high=1e-6)
    assert layer.whole_bias is not None
    np.testing.assert_allclose(layer.whole_bias * (layer.scale * layer.input_scale), layer.bias, rtol=1e-6)


def test_gates_and_first_and_last_layer_are_left_out(tiny_bundle_path: Path) -> None:
    found = {one.weight for one in inner_products(ir.load(tiny_bundle_path / "dense.ort.onnx"))}
    weights = safetensors.numpy.load_file(tiny_bundle_path / WEIGHTS)
    matrices = {name for name, tensor in weights.items() if name.endswith("weight") and tensor.ndim > 1}
    assert {name for name in matrices - found if not name.startswith("gates.")} == {
        "stem.projection.weight",
        "head.patch_projection.weight",
        "head.class_projection.weight",
    }
    assert not any(name.startswith("gates.") for name in found)


def test_every_graph_reads_the_same_8_bit_weights(int8_bundle_path: Path) -> None:
    bundle = Bundle.open(int8_bundle_path)
    spans = {}
    for graph in graph_interfaces(bundle.manifest.spec):
        for fast in (False, True):
            model = onnx.load(str(bundle.graph(graph, fast=fast, precision="int8")), load_external_data=False)
            for tensor in model.graph.initializer:
                parts = {part.key: part.value for part in tensor.external_data}
                if parts:
                    span = (parts["location"], parts["offset"], parts["length"])
                    assert spans.setdefault(tensor.name, span) == span
                else:
                    assert len(tensor.raw_data) <= 4096
    eight = {name for name, (location, *_) in spans.items() if location == weights_file("int8")}
    assert {name.removesuffix(".int8") for name in eight if name.endswith("query.weight.int8")} == {
        *(f"blocks.{number}.attention.query.weight" for number in range(4)),
        *(f"head.blocks.{number}.attention.query.weight" for number in range(2)),
    }
    # Of what is in 8 bits no form reads the original.
    assert not {name.removesuffix(".int8") for name in eight if name.endswith("weight.int8")} & spans.keys()


def test_the_fp32_forms_are_untouched(tiny_bundle_path: Path, int8_bundle_path: Path) -> None:
    for path in [*tiny_bundle_path.glob("*.onnx"), tiny_bundle_path / WEIGHTS]:
        assert path.read_bytes() == (int8_bundle_path / path.name).read_bytes()


@pytest.mark.parametrize("fast", [False, True])
def test_a_second_time_nothing_is_left_to_change(tiny_bundle_path: Path, *, fast: bool) -> None:
    model = ir.load(tiny_bundle_path / f"dense{'.ort' if fast else ''}.onnx")
    name = "blocks.0.attention.output.weight"
    weight = safetensors.numpy.load_file(tiny_bundle_path / WEIGHTS)[name]
    table = QuantisationTable({name: QuantisedLayer.of(weight, None, low=-1, high=1)})
    write = table.fast if fast else table.portable
    assert [write(model).modified for _ in range(2)] == [True, False]


@pytest.mark.parametrize("graph", ["stage0", "stage1", "stage2", "merged", "dense"])
def test_the_portable_form_is_standard_and_the_fast_one_fused(int8_bundle_path: Path, graph: str) -> None:
    portable, fast = (int8_bundle_path / f"{graph}.int8{end}" for end in (".onnx", ".ort.onnx"))
    onnx.checker.check_model(str(portable), full_check=True)
    model = onnx.load(str(portable), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    kinds = Counter(node.op_type for node in model.graph.node)
    fused = Counter(node.op_type for node in onnx.load(str(fast), load_external_data=False).graph.node)
    # Each product has a weight to read, and q, k and v one input.
    assert fused["QGemm"] + kinds["QuantizeLinear"] == kinds["DequantizeLinear"]
    assert fused["QuantizeLinear"] < fused["QGemm"]
    assert kinds["Gemm"] == fused["QGemm"] + fused["Gemm"]
    # The portable form also rounds queries and keys.
    attentions = sum(node.op_type == "MultiHeadAttention" for node in onnx.load(str(fast)).graph.node)
    assert kinds["QuantizeLinear"] == fused["QuantizeLinear"] + 2 * attentions


@pytest.mark.parametrize("ending", [".onnx", ".ort.onnx"])
def test_queries_and_keys_are_found_in_either_form_and_nothing_else(tiny_bundle_path: Path, ending: str) -> None:
    found = [one.weight for one in scored_products(ir.load(tiny_bundle_path / f"dense{ending}"))]
    blocks = [*(f"blocks.{number}" for number in range(4)), *(f"head.blocks.{number}" for number in range(2))]
    assert found == [f"{block}.attention.{part}.weight" for block in blocks for part in ("query", "key")]


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_scores_fit_16_bits_two_by_two_whichever_end_is_farther(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale = float(score_scale(low, high))
    assert scale > 0
    assert 2 * 255 * round(max(abs(low), abs(high)) / scale - 0.01) <= LARGEST_PAIR
