"""Where graphs look for their weights, read from their bytes: as `onnx` reads it, and never anything but one error."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovit_deploy.bundle.pointers import WeightPointer, check_pointers, check_pointers_of_files, weight_pointers
from dovit_deploy.errors import GraphMismatch


def test_every_pointer_is_found_as_onnx_finds_it(int8_bundle_path: Path) -> None:
    files = [int8_bundle_path / name for name in ("weights.safetensors", "weights.int8.safetensors")]
    for path in sorted(int8_bundle_path.glob("*.onnx")):
        expected = set()
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                start, length = int(where["offset"]), int(where["length"])
                # As NumPy and safetensors call it: float32, F32.
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                dtype = f"{kind.name[0].upper()}{8 * kind.itemsize}"
                elements = length // kind.itemsize
                expected.add(WeightPointer(tensor.name, where["location"], start, length, dtype, elements))
        assert len(expected) > 10
        assert set(weight_pointers(path.read_bytes())) == expected
        check_pointers_of_files(path, files)
        if ".int8." in path.name:
            with pytest.raises(GraphMismatch, match="where it is not"):
                check_pointers_of_files(path, files[:1])


def test_dims_are_read_in_either_writing() -> None:
    """A field for each, as protobuf 2 writes them, and all in one, as protobuf 3 does."""
    external = b"".join(
        bytes([0x6A, len(entry)]) + entry
        for key, value in (("location", "w"), ("offset", "8"), ("length", "24"))
        for entry in [bytes([0x0A, len(key)]) + key.encode() + bytes([0x12, len(value)]) + value.encode()]
    )
    for dims in (b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03"):
        tensor = dims + b"\x10\x01" + b"\x42\x01a" + external
        graph = bytes([0x2A, len(tensor)]) + tensor
        (pointer,) = weight_pointers(bytes([0x3A, len(graph)]) + graph)
        assert pointer == WeightPointer("a", "w", 8, 24, "F32", 6)


@given(content=st.binary(max_size=60), graph=st.booleans())
def test_any_bytes_are_read_or_refused(content: bytes, graph: bool) -> None:
    if graph:
        content = bytes([0x3A, len(content) + 2, 0x2A, len(content)]) + content
    try:
        check_pointers("x.onnx", content, {})
    except GraphMismatch as error:
        assert str(error).startswith("x.onnx ")
