from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from dovit_deploy.measure.probe import square_model


def test_onnx_takes_it_for_a_sound_model():
    model = onnx.load_from_string(square_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def test_it_squares_a_matrix():
    session = onnxruntime.InferenceSession(square_model(), providers=["CPUExecutionProvider"])
    matrix = np.array([[0.5, 2.0], [-3.0, 4.0]], dtype=np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": matrix})[0], matrix @ matrix)
