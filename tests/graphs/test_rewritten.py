"""What is written in another way for OpenVINO, run in ONNX Runtime: the results are the same, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.bundle.interface import weights_file
from dovit_deploy.graphs.forms import write_derived
from dovit_deploy.graphs.padding import VALID, padding
from dovit_deploy.graphs.passes import Pass, applied
from dovit_deploy.graphs.rewritten import rounded_norms, written_rows

REWRITES: tuple[Pass, ...] = (written_rows, rounded_norms)


@pytest.mark.parametrize("graph", ["stage0", "stage1", "stage2", "dense"])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_changes(int8_bundle_path: Path, tmp_path: Path, graph: str, *, padded: bool) -> None:
    bundle = Bundle.open(int8_bundle_path)
    before: tuple[Pass, ...] = (padding,) if padded else ()
    outputs = []
    for passes in (before, (*before, *REWRITES)):
        folder = tmp_path / str(len(passes))
        folder.mkdir()
        path = bundle.graph(graph, precision="int8")
        weights = [bundle.path / name for name in (WEIGHTS, weights_file("int8"))]
        write_derived([path], folder, weights=weights, passes=passes)
        session = onnxruntime.InferenceSession(folder / path.name, providers=["CPUExecutionProvider"])
        feed = inputs(bundle)
        outputs.append(session.run(None, {each.name: feed[each.name] for each in session.get_inputs()}))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)


def inputs(bundle: Bundle) -> dict[str, np.ndarray]:
    """Something for every input of every graph; the last two of five positions are padding, where there is any."""
    spec, random = bundle.manifest.spec, np.random.default_rng(0)
    return {
        "pixels": random.normal(size=(1, 3, *spec.size)).astype(np.float32),
        "tokens": random.normal(size=(spec.tokens, spec.width)).astype(np.float32),
        "index": np.asarray([0, 1, 4, 3, 2]),
        "thresholds": np.full(spec.classes, 0.7, np.float32),
        "floor": np.asarray(0, np.float32),
        VALID: np.asarray(3),
    }


def test_norms_are_rounded_by_arithmetic_and_rows_not_read_back(int8_bundle_path: Path) -> None:
    model = ir.load(int8_bundle_path / "stage1.int8.onnx")
    before, after = (operators(applied(model, passes).model) for passes in ((padding,), (padding, *REWRITES)))
    norms = 2 * sum(node.op_type == "Softmax" and source_is_product(node) for node in model.graph)
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == after["Round"] == norms > 0
    # One of the gate's reads is a cut of what was written; what reads whole rows is a Gather.
    assert after["Slice"] == before["Slice"] + 1
    assert before["GatherND"] > after["GatherND"] == 0
    assert not applied(applied(model, REWRITES).model, REWRITES).modified


def source_is_product(node: ir.Node) -> bool:
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return maker is not None and maker.op_type == "MatMul"


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)
