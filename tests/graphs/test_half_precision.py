"""The fp16 form against fp32 in ONNX Runtime: decisions replayed and explained, floats within what fp16 can give."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.tensorrt.record import graph_names
from dovit_deploy.graphs.forms import derive_graphs, half_passes
from dovit_deploy.graphs.half_precision import half_precision
from dovit_deploy.graphs.passes import applied
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.trace import halving_setting, settings_from_images, trace_from_session
from tests.graphs.derived import DerivedBackend
from tests.tiny import tiny_pixels

# Of fp16's 11 bits of mantissa (relative error 2^-11 = 5e-4), over the few layers of a tiny network.
CONFIDENCE, FLOATS = 0.01, 0.01

FLOAT, HALF, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64


@pytest.fixture(scope="module", params=["tiny_bundle_path", "setr_bundle_path"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


def model(nodes, inputs, outputs, constants) -> onnx.ModelProto:
    """A graph; inputs and outputs as name -> (type, shape), constants as name -> array."""
    ports = [
        [onnx.helper.make_tensor_value_info(name, *what) for name, what in side.items()] for side in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*node[:3], **node[3]) for node in nodes], "g", *ports, tensors
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def types_of(converted: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, as strict inference finds them."""
    inferred = onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("bucket", [None, 7])
def test_agrees_with_fp32(bundle: Bundle, bucket: int | None, tmp_path) -> None:
    backend = DerivedBackend(bundle, tmp_path / "half", precision="fp16", plugins=False, bucket=bucket)
    pixels = tiny_pixels(bundle.manifest.spec.size, seed=3).numpy()
    with Session(bundle) as reference, Session(bundle, backend=backend) as half:
        for setting in settings_from_images(reference, [("pixels", pixels)]):
            want = trace_from_session(reference, setting)
            got = trace_from_session(half, setting, replay=want.index)
            for gate in range(len(want.keep)):
                explained(want, got, gate, setting)
                close(want.tokens[gate], got.tokens[gate])
                assert got.tokens[gate].dtype == np.float16
                assert got.confidence[gate].dtype == np.float32
            close(want.logits, got.logits)
            assert got.logits.dtype == np.float32
        close(reference.run(pixels, dense=True)[0], half.run(pixels, dense=True)[0])


def explained(want, got, gate: int, setting) -> None:
    """The contract's rule: a decision differs only where the confidence is closer to its limit than the error."""
    evaluated = np.isfinite(want.confidence[gate])
    assert np.array_equal(evaluated, np.isfinite(got.confidence[gate]))
    error = np.abs(want.confidence[gate] - got.confidence[gate])[evaluated].max()
    assert error < CONFIDENCE
    differs = (want.keep[gate] != got.keep[gate])[-len(evaluated) :]
    distance = np.abs(want.confidence[gate] - setting.thresholds[gate][np.maximum(want.label[gate], 0)])
    assert (distance[differs] <= error).all()


def close(want, got) -> None:
    got = got.astype(np.float32)
    assert np.isfinite(got).all()
    assert np.abs(want - got).max() <= FLOATS * max(1.0, np.abs(want).max())


def test_its_own_decisions_stop_tokens(bundle: Bundle, tmp_path) -> None:
    backend = DerivedBackend(bundle, tmp_path / "half", precision="fp16", plugins=False)
    pixels = tiny_pixels(bundle.manifest.spec.size, seed=3).numpy()
    with Session(bundle) as reference, Session(bundle, backend=backend) as half:
        setting = halving_setting(reference, settings_from_images(reference, [("pixels", pixels)])[0])
        kept = half.run(pixels, thresholds=setting.thresholds)[1].kept
    assert 0.1 < kept[1] / kept[0] < 0.9


def test_types_are_consistent_and_where_they_should_be(bundle: Bundle, tmp_path) -> None:
    graphs, _ = derive_graphs(bundle, graph_names(bundle), tmp_path, precision="fp16", plugins=False)
    matrices = 0
    for graph in graphs:
        derived = onnx.load(str(graph.path))
        types = types_of(derived)
        types.update({tensor.name: tensor.data_type for tensor in derived.graph.initializer})
        for node in derived.graph.node:
            given = {types[name] for name in node.input if name and types[name] in (FLOAT, HALF)}
            if node.op_type in ("MatMul", "Gemm", "Conv"):
                assert given == {HALF}, node.name
                matrices += 1
            if node.op_type in ("LayerNormalization", "Softmax", "ReduceSum", "Div", "Greater", "Less", "TopK"):
                assert HALF not in given, node.name
    assert matrices > 20


def test_the_interface_keeps_its_types_but_for_tokens_that_cross(bundle: Bundle, tmp_path) -> None:
    graphs, _ = derive_graphs(bundle, graph_names(bundle), tmp_path, precision="fp16", plugins=False)
    for graph in graphs:
        loaded = onnx.load(str(graph.path), load_external_data=False).graph
        for port in (*loaded.input, *loaded.output):
            kind = port.type.tensor_type.elem_type
            if port.name in ("tokens", "tokens_out"):
                assert kind == HALF
            else:
                assert kind == (INT64 if port.name in ("index", "valid", "order", "count", "label") else FLOAT), (
                    port.name
                )


def test_a_sum_over_a_vector_product_does_not_overflow() -> None:
    """1,000 tokens of 100 sum to 100,000, beyond fp16; their mean is not."""
    nodes = [
        ("MatMul", ["flags", "tokens"], ["sum"], {}),
        ("Div", ["sum", "count"], ["mean"], {}),
        ("Unsqueeze", ["mean", "axis"], ["row"], {}),
        ("MatMul", ["row", "matrix"], ["logits"], {}),
    ]
    made = model(
        nodes,
        {"tokens": (FLOAT, (1000, 4))},
        {"logits": (FLOAT, (1, 4))},
        {
            "flags": np.ones(1000, np.float32),
            "count": np.float32(1000),
            "axis": np.asarray([0]),
            "matrix": np.eye(4, dtype=np.float32),
        },
    )
    half = converted(made)
    # ONNX Runtime computes fp16 products in fp32 on the CPU, so only the type can show it.
    assert types_of(half)["sum"] == FLOAT
    logits = run(half, tokens=np.full((1000, 4), 100, np.float16))
    assert logits == pytest.approx(100)


def test_a_limit_too_small_for_fp16_holds() -> None:
    """x / max(norm(x), 1e-12) of x = 0 is 0, not 0 / 0."""
    nodes = [
        ("ReduceL2", ["x", "axis"], ["norm"], {"keepdims": 1}),
        ("Max", ["norm", "least"], ["limited"], {}),
        ("Div", ["x", "limited"], ["unit"], {}),
        ("MatMul", ["unit", "matrix"], ["logits"], {}),
    ]
    made = model(
        nodes,
        {"x": (FLOAT, (1, 4))},
        {"logits": (FLOAT, (1, 4))},
        {"axis": np.asarray([1]), "least": np.float32(1e-12), "matrix": np.eye(4, dtype=np.float32)},
    )
    assert run(converted(made), x=np.zeros((1, 4), np.float32)) == pytest.approx(0)


def test_constants_beyond_fp16_become_its_largest_number() -> None:
    made = model(
        [("Add", ["x", "mask"], ["y"], {}), ("MatMul", ["y", "matrix"], ["logits"], {})],
        {"x": (FLOAT, (1, 2))},
        {"logits": (FLOAT, (1, 2))},
        {"mask": np.asarray([-1e9, -np.inf], np.float32), "matrix": np.eye(2, dtype=np.float32)},
    )
    tensors = {tensor.name: tensor for tensor in converted(made).graph.initializer}
    assert onnx.numpy_helper.to_array(tensors["mask.fp16"]).tolist() == [-65504, -np.inf]


def test_a_constant_in_both_types_is_there_twice_and_the_model_given_is_left_alone() -> None:
    made = model(
        [("Mul", ["x", "both"], ["y"], {}), ("MatMul", ["y", "m"], ["z"], {}), ("Div", ["z", "both"], ["logits"], {})],
        {"x": (FLOAT, (1, 2))},
        {"logits": (FLOAT, (1, 2))},
        {"both": np.asarray([2, 3], np.float32), "m": np.eye(2, dtype=np.float32)},
    )
    given = ir.from_proto(made)
    before = ir.to_proto(given).SerializeToString()
    changed = applied(given, half_passes()).model
    assert set(changed.graph.initializers) == {"both", "both.fp16", "m.fp16"}
    assert ir.to_proto(given).SerializeToString() == before


def test_a_graph_without_floats_is_not_modified() -> None:
    made = model([("Add", ["i", "i"], ["j"], {})], {"i": (INT64, (2,))}, {"j": (INT64, (2,))}, {})
    assert not half_precision(ir.from_proto(made)).modified


def converted(made: onnx.ModelProto) -> onnx.ModelProto:
    changed = applied(ir.from_proto(made), half_passes())
    assert changed.modified
    result = ir.to_proto(changed.model)
    types_of(result)
    return result


def run(made: onnx.ModelProto, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]
