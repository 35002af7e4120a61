"""What is in an ONNX or safetensors file; damaged, truncated and hostile files are refused in one line."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from dovit_deploy.engines.square import SQUARE_MODEL
from dovit_deploy.errors import InputError, PackageMissing, UntrustedError
from dovit_deploy.measure.inspect_files import SHOWN_TENSORS, onnx_contents, safetensors_contents


@pytest.fixture
def without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)


GRAPHS = pytest.mark.parametrize("name", ["stage0.onnx", "stage1.ort.onnx", "merged.onnx", "dense.ort.onnx"])


@GRAPHS
def test_graphs_of_a_bundle(tiny_bundle_path, name):
    path = tiny_bundle_path / name
    model = onnx.load(path, load_external_data=False)
    found = onnx_contents(path)
    assert found.opsets == {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    assert [port.name for port in found.inputs] == [port.name for port in model.graph.input]
    assert [port.name for port in found.outputs] == [port.name for port in model.graph.output]
    for port, value in zip((*found.inputs, *found.outputs), (*model.graph.input, *model.graph.output), strict=True):
        kind = value.type.tensor_type
        assert port.shape == tuple(side.dim_param or side.dim_value for side in kind.shape.dim)
        assert port.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    operators = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    assert found.operators == operators
    assert found.weights == len(model.graph.initializer)
    assert found.external_files == ("weights.safetensors",)
    assert found.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert found.metadata["dovit.format"] == "dovit-bundle"


@GRAPHS
def test_without_onnx_the_runtime_gives_inputs_outputs_and_metadata(tiny_bundle_path, name, monkeypatch):
    path = tiny_bundle_path / name
    whole = onnx_contents(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = onnx_contents(path)
    assert (found.inputs, found.outputs, found.metadata) == (whole.inputs, whole.outputs, whole.metadata)
    assert found.operators is found.opsets is found.weights is found.parameters is found.external_files is None
    assert "pip install onnx" in dict(found.facts)["note"]


def test_without_onnx_and_the_runtime_the_line_to_install_one_is_given(tmp_path, without_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PackageMissing, match="pip install onnx"):
        onnx_contents(tmp_path / "model.onnx")


@pytest.fixture
def unusual(tmp_path):
    """A file with inner graphs, a function, an operator that no runtime knows, and a weight among the inputs."""
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
            helper.make_node("Twice", ["x"], ["u"], domain="local"),
        ],
        "outer",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", None]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2, 3], [0.0] * 6)],
    )
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    path = tmp_path / "outer.onnx"
    onnx.save(helper.make_model(graph, functions=[twice], producer_name="test"), path)
    return path


def test_inner_graphs_functions_and_weights_among_inputs(unusual):
    found = onnx_contents(unusual)
    assert found.operators == {"Neg": 2, "If": 1, "local.Twice": 1, "Add": 1}
    assert [(port.name, port.dtype, port.shape) for port in found.inputs] == [
        ("c", "bool", ()),
        ("x", "bfloat16", ("n", "?")),
    ]
    assert (found.weights, found.parameters, found.external_files, found.producer) == (1, 6, (), "test")


def test_what_the_runtime_cannot_load_names_the_package_that_reads_it(unusual, without_onnx):
    with pytest.raises(InputError, match="pip install onnx"):
        onnx_contents(unusual)


def test_every_cut_of_a_file_is_refused_or_smaller(tmp_path):
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(SQUARE_MODEL)):
        path.write_bytes(SQUARE_MODEL[:length])
        try:
            onnx_contents(path)
        except InputError:
            refused += 1
    # Only the version of the operators stands after the graph, so all other cuts lose the graph.
    assert refused >= len(SQUARE_MODEL) - 2


def test_every_flipped_byte_is_refused_or_described(tmp_path):
    path = tmp_path / "flipped.onnx"
    for position in range(len(SQUARE_MODEL)):
        for mask in (0x01, 0x80, 0xFF):
            content = bytearray(SQUARE_MODEL)
            content[position] ^= mask
            path.write_bytes(content)
            try:
                assert onnx_contents(path).facts
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"this is a text file, not a model\n", b"\x89PNG\r\n\x1a\n" + bytes(40)])
@pytest.mark.parametrize("reader", ["onnx", "onnxruntime"])
def test_another_file_called_onnx(tmp_path, content, reader, monkeypatch):
    if reader == "onnxruntime":
        monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX file"):
        onnx_contents(path)


def length_prefixed(number: int, content: bytes) -> bytes:
    """Field `number` of a protobuf message, holding bytes; what `onnx` itself would refuse to write."""
    length, encoded = len(content), bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *encoded, length]) + content


def test_a_file_that_nests_without_end(tmp_path):
    graph = b""
    for _ in range(200):
        # A graph (attribute, field 6) in an attribute (node, field 5) of a node (graph, field 1).
        graph = length_prefixed(1, length_prefixed(5, length_prefixed(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(length_prefixed(7, graph))
    with pytest.raises(InputError, match="not an ONNX file"):
        onnx_contents(path)


def test_text_that_is_not_utf8_is_shown_as_such(tmp_path):
    path = tmp_path / "name.onnx"
    path.write_bytes(SQUARE_MODEL.replace(b"dovit-deploy", b"\xff" * 12))
    assert onnx_contents(path).producer == "\ufffd" * 12


@pytest.fixture
def weights(tmp_path):
    target = tmp_path / "weights.safetensors"
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16), "c": np.zeros((), np.float32)}
    save_file(tensors, target, metadata={"format": "pt"})
    return target


def test_a_safetensors_header(weights):
    found = safetensors_contents(weights)
    assert found.parameters == 11 and found.dtypes == {"F32": 2, "F16": 1}
    assert found.metadata == {"format": "pt"} and found.bytes == weights.stat().st_size
    assert {entry.name: entry.shape for entry in found.tensors} == {"a": (2, 3), "b": (4,), "c": ()}


def test_types_that_numpy_lacks_are_named(tmp_path):
    target = tmp_path / "bf16.safetensors"
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    target.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert safetensors_contents(target).dtypes == {"BF16": 1}


def test_long_lists_are_cut_in_the_text_only(tmp_path):
    target = tmp_path / "many.safetensors"
    save_file({f"t{number}": np.zeros(1, np.float32) for number in range(SHOWN_TENSORS + 5)}, target)
    found = safetensors_contents(target)
    assert len(found.tensors) == SHOWN_TENSORS + 5
    shown = [text for label, text in found.facts if label == "tensor"]
    assert len(shown) == SHOWN_TENSORS + 1 and "5 more" in shown[-1]


def test_a_truncated_safetensors_file(weights):
    whole = weights.read_bytes()
    for length in (0, 4, 8, 40, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a safetensors file, or is truncated"):
            safetensors_contents(weights)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{not json",
        json.dumps({"a": {"dtype": "F32"}}).encode(),
        json.dumps({"__metadata__": {"a": 1}}).encode(),
        b"[" * 50_000,
    ],
)
def test_headers_that_are_none(tmp_path, header):
    target = tmp_path / "bad.safetensors"
    target.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="not a safetensors file"):
        safetensors_contents(target)


def test_a_header_that_claims_to_be_longer_than_any_file(tmp_path):
    target = tmp_path / "huge.safetensors"
    target.write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="header too large"):
        safetensors_contents(target)


@pytest.mark.parametrize("dims", [[2**62] * 500, [-1, 4], [2**32, 2**32]], ids=["unprintable", "negative", "too many"])
def test_a_weight_of_a_shape_that_cannot_be_is_refused(tmp_path, dims):
    graph = helper.make_graph(
        [], "g", [], [], initializer=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)]
    )
    path = tmp_path / "damaged.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UntrustedError, match=r"no tensor can have the shape .* 'w'"):
        onnx_contents(path)
