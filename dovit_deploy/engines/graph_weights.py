"""The tensors behind derived graphs: read from a bundle's weights, written to one file that all derived graphs share.

A safetensors file is 8 bytes of header length, a JSON header and the raw little-endian tensors; ONNX external data
points into it by offset and length, as in a bundle (docs/bundle-format.md).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dovit_deploy import packages

INLINE_LIMIT = 4096
"""Bytes; smaller tensors stay in the graph."""

Array = np.ndarray[Any, Any]


class GraphWeights:
    """Large tensors of derived graphs, by name; a name means the same tensor in all of them.

    Args:
        source: the bundle's safetensors file, which the portable graphs point into.
        file: name of the file that `write` makes and derived graphs point into.
    """

    def __init__(self, source: Path, *, file: str) -> None:
        self._source, self._file = source, file
        self._tensors: dict[str, Array] = {}

    def array(self, tensor: Any) -> Array:  # noqa: ANN401  an onnx.TensorProto
        """The values of an initializer, wherever they are."""
        onnx = packages.onnx()
        if tensor.name in self._tensors and _external(tensor).get("location") == self._file:
            return self._tensors[tensor.name]
        places = _external(tensor)
        if not places:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count, offset = int(np.prod(tensor.dims)), int(places["offset"])
        flat: Array = np.memmap(self._source, dtype=dtype, mode="r", offset=offset, shape=(count,))
        return flat.reshape(tuple(tensor.dims))

    def tensor(self, name: str, values: Array) -> Any:  # noqa: ANN401
        """An initializer of these values, in the graph where it is small, else in the file."""
        onnx = packages.onnx()
        if values.nbytes <= INLINE_LIMIT:
            return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._tensors[name] = values
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        _point(tensor, {"location": self._file})
        return tensor

    def adopt(self, model: Any) -> None:  # noqa: ANN401
        """Let the initializers of `model` that lie in the source lie in the file to come."""
        for tensor in model.graph.initializer:
            if _external(tensor) and _external(tensor)["location"] != self._file:
                tensor.CopyFrom(self.tensor(tensor.name, self.array(tensor)))

    def write(self, folder: Path, models: Iterable[Any]) -> Path:
        """Write the file to `folder` and let the initializers of `models` point at their places in it."""
        path = folder / self._file
        tensors = {name: np.ascontiguousarray(values) for name, values in sorted(self._tensors.items())}
        # Not `save_file`: it makes the file unreadable for everybody else.
        path.write_bytes(safetensors.numpy.save(tensors))
        places = tensor_places(path)
        for model in models:
            for tensor in model.graph.initializer:
                if _external(tensor).get("location") == self._file:
                    offset, length = places[tensor.name]
                    _point(tensor, {"location": self._file, "offset": str(offset), "length": str(length)})
        return path


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies: absolute offset and length in bytes."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    start = 8 + length
    return {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _external(tensor: Any) -> dict[str, str]:  # noqa: ANN401
    return {entry.key: entry.value for entry in tensor.external_data}


def _point(tensor: Any, places: dict[str, str]) -> None:  # noqa: ANN401
    del tensor.external_data[:]
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)
