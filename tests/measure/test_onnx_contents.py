from __future__ import annotations

from collections import Counter

import onnx
import pytest
from onnx import TensorProto, helper

from dovit_deploy.errors import InputError
from dovit_deploy.measure.onnx_contents import DEEPEST, onnx_contents
from dovit_deploy.measure.probe import square_model
from dovit_deploy.measure.protobuf import chunk


@pytest.mark.parametrize("name", ["stage0.onnx", "stage1.ort.onnx", "merged.onnx", "dense.ort.onnx"])
def test_agrees_with_the_onnx_package(tiny_bundle_path, name):
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


def test_inner_graphs_functions_and_weights_among_inputs(tmp_path):
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
    found = onnx_contents(path)
    assert found.operators == {"Neg": 2, "If": 1, "local.Twice": 1, "Add": 1}
    assert [(port.name, port.dtype, port.shape) for port in found.inputs] == [
        ("c", "bool", ()),
        ("x", "bfloat16", ("n", "?")),
    ]
    assert (found.weights, found.parameters, found.external_files, found.producer) == (1, 6, (), "test")


def test_every_cut_of_a_file_is_refused_or_smaller(tmp_path):
    whole = square_model()
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            onnx_contents(path)
        except InputError:
            refused += 1
    # Only the version of the operators stands after the graph, so all other cuts lose the graph.
    assert refused >= len(whole) - 2


@pytest.mark.parametrize("content", [b"", b"this is a text file, not a model\n", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_another_file_called_onnx(tmp_path, content):
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX file"):
        onnx_contents(path)


def test_a_file_that_nests_without_end(tmp_path):
    graph = b""
    for _ in range(DEEPEST + 3):
        graph = chunk(1, chunk(5, chunk(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(chunk(7, graph))
    with pytest.raises(InputError, match="nested"):
        onnx_contents(path)
