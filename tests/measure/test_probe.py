"""The probes of `doctor`: what is tried computes, and what fails gives its reason."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.engines.square import SQUARE_MODEL, check_square
from dovit_deploy.errors import EncoderMissing
from dovit_deploy.measure import probe


def test_the_square_model_is_what_onnx_makes():
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "square", ports[:1], ports[1:])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, producer_name="dovit-deploy", ir_version=8, opset_imports=[opset])
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString(deterministic=True) == SQUARE_MODEL


def test_the_square_model_squares_a_matrix():
    session = onnxruntime.InferenceSession(SQUARE_MODEL, providers=["CPUExecutionProvider"])
    matrix = np.array([[0.5, 2.0], [-3.0, 4.0]], dtype=np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": matrix})[0], matrix @ matrix)


def test_every_engine_has_a_probe():
    for entry in ENGINES.values():
        assert callable(getattr(importlib.import_module(entry.module), entry.probe)), entry


@pytest.mark.parametrize("name", ["h264", "mp4v"])
def test_encoders_write_a_clip(name):
    assert "a clip of" in probe.PROBES[name]()


def test_a_wrong_product_is_no_engine():
    with pytest.raises(ArithmeticError, match="expected"):
        check_square(np.zeros((2, 2)))


def test_a_pyav_without_h264_is_not_hidden_by_the_fallback(monkeypatch):
    monkeypatch.setattr("dovit_deploy.sources.video_writer.ENCODER", "no such encoder")
    with pytest.raises(EncoderMissing, match=r"H\.264"):
        probe.h264()


def test_a_missing_package_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert probe.main("onnxruntime") == 5
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "pip install" in captured.err
