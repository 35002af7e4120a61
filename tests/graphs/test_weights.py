"""One weights file behind every graph: the offsets of its tensors, and which initializers point into it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy

from dovit_deploy.graphs.weights import SharedWeights
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
    assert set(weights.spans) == {"a", "b"}
    for name, (offset, length) in weights.spans.items():
        assert weights.path.read_bytes()[offset : offset + length] == tensors[name].tobytes()
    loaded = safetensors.numpy.load_file(weights.path)
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
    assert (tensor.location, tensor.offset) == ("w.safetensors", weights.spans["t0"][0])
    assert np.array_equal(tensor.numpy(), values)


def test_a_tensor_of_another_size_is_a_defect(tmp_path) -> None:
    weights = SharedWeights.write(tmp_path / "w.safetensors", {"t0": np.zeros(3, np.float32)})
    with pytest.raises(RuntimeError, match="16 bytes in the graph, 12 in the file"):
        weights(gathers(np.zeros(4, np.float32)))
