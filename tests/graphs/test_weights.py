"""One weights file behind every graph: the offsets of its tensors, and which initializers point into it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import safetensors.numpy

from dovit_deploy.bundle.pointers import check_pointers_of_files
from dovit_deploy.errors import GraphMismatch
from dovit_deploy.graphs.passes import applied
from dovit_deploy.graphs.weights import SharedWeights, widened
from tests.graphs.test_exported import gathers


def test_a_large_float_is_a_mask_or_a_defect(tmp_path) -> None:
    weights = SharedWeights.write(tmp_path / "weights.safetensors", {"weight": np.zeros(2, np.float32)})
    mask = np.where(np.arange(2000) % 3 > 0, 0.0, -100.0).astype(np.float32)
    assert not weights(gathers(mask)).modified
    with pytest.raises(RuntimeError, match="is not a weight"):
        weights(gathers(np.arange(2000, dtype=np.float32)))


def test_a_mask_in_float16_is_one_whatever_the_sign_of_its_zeros(tmp_path) -> None:
    weights = SharedWeights.write(tmp_path / "weights.safetensors", {"weight": np.zeros(2, np.float32)})
    mask = np.where(np.arange(4096) % 100 == 0, -0.0, -1000.0).astype(np.float16)
    assert not weights(gathers(mask)).modified


def test_offsets_are_those_of_the_tensors(tmp_path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.arange(4, dtype=np.float32)}
    weights = SharedWeights.write(tmp_path / "w.safetensors", tensors, {"format": "test"})
    assert set(weights.tensors) == {"a", "b"}
    for name, stored in weights.tensors.items():
        end = stored.span.start + stored.span.length
        assert stored.file.read_bytes()[stored.span.start : end] == tensors[name].tobytes()
    loaded = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert all(np.array_equal(loaded[name], values) for name, values in tensors.items())


def test_an_initializer_points_into_the_file_under_the_tensors_own_name(tmp_path) -> None:
    values = np.arange(4, dtype=np.float32)
    weights = SharedWeights.write(tmp_path / "w.safetensors", {"t0": values, "t1": values[:3]})
    model = gathers(values)
    value = model.graph.initializers.pop("t0")
    value.name = "network.t0"
    model.graph.initializers["network.t0"] = value
    assert weights(model).modified
    tensor = model.graph.initializers["t0"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert (tensor.location, tensor.offset) == ("w.safetensors", weights.tensors["t0"].span.start)
    assert np.array_equal(tensor.numpy(), values)


def test_a_tensor_of_another_size_is_a_defect(tmp_path) -> None:
    weights = SharedWeights.write(tmp_path / "w.safetensors", {"t0": np.zeros(3, np.float32)})
    with pytest.raises(RuntimeError, match="16 bytes in the graph, 12 in the file"):
        weights(gathers(np.zeros(4, np.float32)))


# Weights that are stored in float16.

VALUES = np.array([[1.5, -2.25], [0.0, 60000.0]], np.float32)
TWICE = """
<ir_version: 10, opset_import: ["" : 20]>
twice (float[2,2] x) => (float[2,2] y)
<float[2,2] t0 = {1.5, -2.25, 0.0, 60000.0}>
{
    product = MatMul (x, t0)
    y = Add (product, t0)
}
"""


@pytest.fixture
def half(tmp_path) -> tuple[ir.Model, SharedWeights]:
    """A graph that reads a weight twice, and the file that holds it in float16."""
    weights = SharedWeights.write(tmp_path / "w.safetensors", {"t0": VALUES.astype(np.float16)})
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TWICE))
    assert weights(model).modified
    return model, weights


def test_what_is_stored_in_float16_is_cast_once_for_all_who_read_it(half, tmp_path) -> None:
    model, weights = half
    cast, *readers = model.graph
    assert (cast.op_type, cast.inputs[0].name, cast.attributes["to"].as_int()) == ("Cast", "t0", 1)
    assert [node.inputs[1].producer() for node in readers] == [cast, cast]
    tensor = model.graph.initializers["t0"].const_value
    assert (tensor.dtype, tensor.offset) == (ir.DataType.FLOAT16, weights.tensors["t0"].span.start)
    ir.save(model, tmp_path / "g.onnx")
    onnx.checker.check_model(str(tmp_path / "g.onnx"), full_check=True)
    check_pointers_of_files(tmp_path / "g.onnx", [tmp_path / "w.safetensors"])


def test_passes_find_float32_and_the_way_back_changes_nothing(half) -> None:
    model, weights = half
    before = ir.to_proto(model).SerializeToString()
    copy = applied(model, (widened,)).model
    value = copy.graph.initializers["t0"]
    assert value.dtype == value.const_value.dtype == ir.DataType.FLOAT
    assert np.array_equal(value.const_value.numpy(), VALUES)
    assert [node.op_type for node in copy.graph] == ["MatMul", "Add"]
    assert not widened(copy).modified
    assert weights(copy).modified
    assert ir.to_proto(copy).SerializeToString() == before
    # Shared with the copy, and yet as it was.
    assert ir.to_proto(model).SerializeToString() == before


def test_what_points_into_the_file_already_is_left_alone(half) -> None:
    model, weights = half
    assert not weights(model).modified


@pytest.mark.parametrize("attack", ["a Cast to another type", "no Cast", "an output"])
def test_float16_that_is_read_as_anything_but_float32_is_refused(half, attack: str) -> None:
    model, _ = half
    cast, product, _ = model.graph
    if attack == "a Cast to another type":
        cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE)
    elif attack == "no Cast":
        product.replace_input_with(1, model.graph.initializers["t0"])
    else:
        model.graph.outputs.append(cast.outputs[0])
    with pytest.raises(GraphMismatch, match=r"'twice' reads the weight 't0', .* in another way than as float32"):
        widened(model)


def test_each_weight_is_read_from_the_file_that_holds_it(tmp_path) -> None:
    SharedWeights.write(tmp_path / "a.safetensors", {"t0": np.zeros(4, np.float32)})
    SharedWeights.write(tmp_path / "b.safetensors", {"t1": np.ones(4, np.float32)})
    model = gathers(np.zeros(4, np.float32), np.ones(4, np.float32))
    SharedWeights.read(tmp_path / "a.safetensors", tmp_path / "b.safetensors")(model)
    located = {name: value.const_value.location for name, value in model.graph.initializers.items()}
    assert located == {"t0": "a.safetensors", "t1": "b.safetensors"}
