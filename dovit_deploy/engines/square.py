"""Does a runtime compute here? The smallest model that shows it: the square of a matrix, for the engines' probes."""

from __future__ import annotations

import numpy as np

SQUARE_MODEL = (
    b'\x08\x08\x12\x0cdovit-deploy:E\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x06square'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"B\x04\n\x00\x10\x11"
)
"""ONNX: `x` (2, 2) float32 to `y` = x @ x.

As bytes, since ONNX Runtime works without the package `onnx`, which could make them (the tests compare the two).
IR version 8 and opset 17 are old enough for every ONNX Runtime that this package supports.
"""

MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
SQUARE = np.array([[7.0, 10.0], [15.0, 22.0]], dtype=np.float32)


def check_square(result: object) -> None:
    """Refuse a `result` that is not the square of MATRIX.

    Raises:
        ArithmeticError: it is not.
    """
    if not np.allclose(np.asarray(result), SQUARE):
        raise ArithmeticError(f"computed {np.asarray(result).tolist()}, expected {SQUARE.tolist()}")
