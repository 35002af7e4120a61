"""The smallest ONNX model that shows that a runtime computes: y = x @ x for a 2x2 matrix, written without `onnx`.

Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from dovit_deploy.measure.protobuf import chunk, integer

IR_VERSION, OPSET = 8, 17
"""Old enough for every ONNX Runtime that this package supports."""

FLOAT, SIDE = 1, 2


def square_model() -> bytes:
    """Bytes of a model from `x` (2, 2) float32 to `y`, their matrix product x @ x."""
    node = chunk(1, "x") + chunk(1, "x") + chunk(2, "y") + chunk(4, "MatMul")
    graph = chunk(1, node) + chunk(2, "square") + chunk(11, _port("x")) + chunk(12, _port("y"))
    opset = chunk(1, "") + integer(2, OPSET)
    return integer(1, IR_VERSION) + chunk(2, "dovit-deploy") + chunk(7, graph) + chunk(8, opset)


def _port(name: str) -> bytes:
    """A ValueInfoProto: name 1; type 2 with tensor_type 1 of elem_type 1 and shape 2, whose dims are field 1."""
    side = chunk(1, integer(1, SIDE))
    tensor = integer(1, FLOAT) + chunk(2, side + side)
    return chunk(1, name) + chunk(2, chunk(1, tensor))
