"""One `weights.safetensors` behind every graph: initializers become ONNX external data that points into it.

A safetensors file is 8 bytes of header length, a JSON header and the raw little-endian tensors, so a tensor's
offset in the file is 8 + header length + its `data_offsets[0]`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import safetensors.numpy
import safetensors.torch
from torch import Tensor

INLINE_LIMIT = 4096
"""Bytes; scalars and small tables stay in the graph. A larger float tensor that is no mask is a defect."""


@dataclass(frozen=True)
class WeightsFile:
    """Where each tensor lies in a safetensors file: absolute offset and length in bytes."""

    path: Path
    places: dict[str, tuple[int, int]]

    @classmethod
    def write(cls, path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> WeightsFile:
        """Write `state` (name -> float32 tensor) to `path`."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        # Not `save_file`: it makes the file unreadable for everybody else.
        path.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> WeightsFile:
        """Read the header of the file at `path`."""
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
        start = 8 + length
        places = {
            name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        return cls(path, places)


def with_shared_weights(model: ir.Model, weights: WeightsFile) -> ir.Model:
    """`model` with every initializer that is one of `weights` pointing into that file, under the tensor's own name.

    Requires initializers named after the module's parameters, with or without a path in front ("model.").
    Ensures that no large float tensor stays in the graph.

    Raises:
        RuntimeError: a large float initializer is not one of `weights` (a defect of the exported module).
    """
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        name = _weight_name(str(value.name), weights)
        if name is None:
            if tensor.nbytes > INLINE_LIMIT and tensor.dtype.is_floating_point() and not _is_mask(tensor):
                raise RuntimeError(f"initializer '{value.name}' of {tensor.nbytes} bytes is not a weight of the model")
            continue
        offset, length = weights.places[name]
        if length != tensor.nbytes:
            raise RuntimeError(
                f"initializer '{value.name}': {tensor.nbytes} bytes in the graph, {length} in the weights"
            )
        del model.graph.initializers[str(value.name)]
        value.name = name
        value.const_value = ir.ExternalTensor(
            weights.path.name,
            offset,
            length,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=weights.path.parent,
        )
        model.graph.initializers[name] = value
    return model


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    """It has two values at most, as what attention adds to hide places."""
    return len(np.unique(tensor.numpy())) <= 2


def _weight_name(initializer: str, weights: WeightsFile) -> str | None:
    """The weight that an initializer is: its own name, or what follows "model." or "network.model."."""
    name = initializer
    while name not in weights.places:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name
