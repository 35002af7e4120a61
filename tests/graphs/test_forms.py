"""The forms that TensorRT reads: their versions are raised when they change, and only then."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.graphs import forms
from dovit_deploy.graphs.forms import VERSIONS, derive_graphs, engine_passes, forms_digest
from dovit_deploy.graphs.passes import applied

# A stage in small: rows of an index taken, attention among them, put back; a vector's product; a mask's order.
STAGE = """
<ir_version: 10, opset_import: ["" : 20]>
stage (float[6,4] tokens, int64[kept] index) => (float[6,4] tokens_out, float[4] mean, int64[6] order, int64 count)
<float[4,4] weight = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, int64[1] last = {1}, int64 zero = {0}, int64 one = {1},
 int64[6] zeros = {0,0,0,0,0,0}, float[6] flags = {1,1,1,1,1,1}>
{
    rows = Gather <axis = 0> (tokens, index)
    query = MatMul (rows, weight)
    key = Transpose <perm = [1, 0]> (rows)
    scores = MatMul (query, key)
    shares = Softmax <axis = 1> (scores)
    mixed = MatMul (shares, rows)
    targets = Unsqueeze (index, last)
    tokens_out = ScatterND (tokens, targets, mixed)
    ones = Shape (index)
    filled = Expand (one, ones)
    keep = ScatterND (zeros, targets, filled)
    share = Cast <to = 1> (keep)
    mean = MatMul (share, tokens_out)
    count = ReduceSum <keepdims = 0> (keep)
    kept = CumSum (keep, zero)
    kept_target = Sub (kept, one)
    rest = Sub (one, keep)
    others = CumSum (rest, zero)
    behind = Add (count, others)
    other_target = Sub (behind, one)
    is_kept = Greater (keep, zero)
    target = Where (is_kept, kept_target, other_target)
    order_targets = Unsqueeze (target, last)
    shape = Shape (keep)
    total = Squeeze (shape)
    positions = Range (zero, total, one)
    order = ScatterND (keep, order_targets, positions)
}
"""


def text_of(model: ir.Model) -> str:
    """What a graph computes, apart from how it is stored and in which order independent nodes stand."""
    proto = ir.to_proto(model)
    nodes = [
        [
            *(node.domain, node.op_type, list(node.input), list(node.output)),
            sorted((entry.name, str(onnx.helper.get_attribute_value(entry))) for entry in node.attribute),
        ]
        for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node))
        if node.op_type != "Constant"
    ]
    constants = [
        [tensor.name, str(tensor.data_type), onnx.numpy_helper.to_array(tensor).tolist()]
        for tensor in proto.graph.initializer
    ]
    values = (*proto.graph.input, *proto.graph.output)
    ports = [[value.name, value.type.tensor_type.elem_type] for value in values]
    return json.dumps([sorted(nodes), sorted(constants), ports])


def test_a_form_that_changes_has_a_new_version() -> None:
    """Fails when a pass makes another graph: raise its number here and in `VERSIONS`; engines are then built again."""
    given = ir.from_onnx_text(STAGE)
    made = [
        text_of(applied(given, engine_passes(precision=precision, plugins=plugins)).model)
        for precision in ("fp32", "fp16")
        for plugins in (False, True)
    ]
    digest = hashlib.sha256("\n".join(made).encode()).hexdigest()[:16]
    assert (VERSIONS, digest) == (
        {"weighted_sums": 2, "padding": 2, "half_precision": 2, "plugin_form": 3},
        "2ff27c14ad651c7c",
    )


def test_every_pass_of_an_engines_form_has_a_version() -> None:
    ours = {getattr(one, "__name__", "") for one in engine_passes(precision="fp16", plugins=True)} & vars(forms).keys()
    assert ours - {"forget_types"} == VERSIONS.keys()


def test_the_digest_follows_versions_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = forms_digest()
    monkeypatch.setattr(Path, "open", lambda self, *rest: pytest.fail(f"{self} was read"))
    assert forms_digest() == before
    monkeypatch.setitem(VERSIONS, "padding", 99)
    assert forms_digest() != before


def test_derived_graphs_share_one_file_of_what_they_read(tiny_bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle_path)
    portable = {tensor.name for tensor in external(bundle.graph("stage1"))}
    for precision, suffix in (("fp32", ""), ("fp16", ".fp16")):
        folder = tmp_path / precision
        folder.mkdir()
        graphs, weights = derive_graphs(bundle, ["stage1", "stage2"], folder, precision=precision, plugins=False)
        assert {path.name for path in folder.iterdir()} == {"stage1.onnx", "stage2.onnx", weights.name}
        found = {tensor.name for tensor in external(graphs[0].path)}
        assert {name.removesuffix(suffix) for name in found} <= portable
        assert any(name.endswith(suffix) for name in found)
        assert [graph.attention for graph in graphs] == [2, 3]


def external(path: Path) -> list[onnx.TensorProto]:
    model = onnx.load(str(path), load_external_data=False)
    return [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


def test_the_stage_in_small_is_computed_alike_in_every_form() -> None:
    import onnxruntime

    draw = np.random.default_rng(0)
    feed = {"tokens": draw.normal(size=(6, 4)).astype(np.float32), "index": np.array([1, 2, 5])}

    def answers(model: ir.Model, **more: np.ndarray) -> list[np.ndarray]:
        serialised = ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(serialised, providers=["CPUExecutionProvider"])
        half = session.get_inputs()[0].type == "tensor(float16)"
        tokens = feed["tokens"].astype(np.float16) if half else feed["tokens"]
        return session.run(None, {**feed, "tokens": tokens, **more})

    given = ir.from_onnx_text(STAGE)
    want = answers(given)
    for precision, tolerance in (("fp32", 1e-6), ("fp16", 1e-2)):
        for plugins in (False, True):
            derived = applied(given, engine_passes(precision=precision, plugins=plugins)).model
            got = answers(derived, valid=np.asarray(3))
            for one, other in zip(want, got, strict=True):
                np.testing.assert_allclose(other.astype(one.dtype), one, atol=tolerance)
