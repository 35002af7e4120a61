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
from dovit_deploy.bundle.bundle import WEIGHTS

INLINE_LIMIT = 4096
"""Bytes; smaller tensors stay in the graph."""

Array = np.ndarray[Any, Any]


class GraphWeights:
    """Large tensors of derived graphs, by name; a name means the same tensor in all of them.

    Args:
        source: the bundle's safetensors file, which the portable graphs point into.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._tensors: dict[str, Array] = {}

    def array(self, tensor: Any) -> Array:  # noqa: ANN401  an onnx.TensorProto
        """The values of an initializer of a portable graph."""
        onnx, place = packages.onnx(), {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count, offset = int(np.prod(tensor.dims)), int(place["offset"])
        flat: Array = np.memmap(self._source, dtype=dtype, mode="r", offset=offset, shape=(count,))
        return flat.reshape(tuple(tensor.dims))

    def tensor(self, name: str, values: Array) -> Any:  # noqa: ANN401
        """An initializer of these values, in the graph where it is small, else in the file to come."""
        onnx = packages.onnx()
        if values.nbytes <= INLINE_LIMIT:
            return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._tensors[name] = values
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, data_location=onnx.TensorProto.EXTERNAL)

    def adopt(self, tensors: Iterable[Any]) -> None:
        """Let those initializers of a portable graph that lie in the source lie in the file to come."""
        for tensor in tensors:
            if tensor.external_data:
                tensor.CopyFrom(self.tensor(tensor.name, self.array(tensor)))

    def write(self, folder: Path, models: Iterable[Any]) -> Path:
        """Write `weights.safetensors` to `folder` and let the initializers of `models` point at their places in it."""
        path = folder / WEIGHTS
        tensors = {name: np.ascontiguousarray(values) for name, values in sorted(self._tensors.items())}
        # Not `save_file`: it makes the file unreadable for everybody else.
        path.write_bytes(safetensors.numpy.save(tensors))
        places, external = tensor_places(path), packages.onnx().TensorProto.EXTERNAL
        for model in models:
            for tensor in model.graph.initializer:
                if tensor.data_location == external:
                    offset, length = places[tensor.name]
                    del tensor.external_data[:]
                    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
                        tensor.external_data.add(key=key, value=str(value))
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
