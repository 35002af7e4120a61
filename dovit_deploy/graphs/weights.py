"""Where are a graph's weights? In one safetensors file that all graphs of a folder share, as ONNX external data.

A safetensors file is 8 bytes of header length (little-endian), a JSON header and the raw little-endian tensors, so it
serves as external data as it is: a tensor's offset in the file is 8 + header length + its `data_offsets[0]`
(docs/bundle-format.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from dovit_deploy import packages
from dovit_deploy.bundle.weights import spans_from_file
from dovit_deploy.graphs.passes import result

if TYPE_CHECKING:
    import onnx_ir as ir

INLINE_LIMIT = 4096
"""Bytes; scalars and small tables stay in the graph. A larger float tensor that is no mask is a defect."""


@dataclass(frozen=True)
class SharedWeights:
    """A safetensors file, and the bytes of it that each tensor takes.

    Calling it is a pass: it lets a graph point into the file (`graphs/passes.py` says what a pass is).
    """

    path: Path
    spans: Mapping[str, tuple[int, int]]
    """Name -> offset from the start of the file, and length, both in bytes."""

    @classmethod
    def write(
        cls, path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: dict[str, str] | None = None
    ) -> SharedWeights:
        """Write `tensors` to `path`; arrays of any type that ONNX and safetensors both know."""
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        # Not `save_file`: it makes the file unreadable for everybody else.
        path.write_bytes(safetensors.numpy.save(contiguous, metadata=metadata))
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> SharedWeights:
        """Read the header of the file at `path`; the package `safetensors` does not give offsets away."""
        return cls(path, {name: (span.start, span.length) for name, span in spans_from_file(path).items()})

    def __call__(self, model: ir.Model) -> ir.passes.PassResult:
        """Let every initializer that is one of the weights point into the file, under the tensor's own name.

        Requires initializers named after the weights, with or without a path in front ("model.").
        Ensures that no large float tensor stays in the graph.

        Raises:
            RuntimeError: a large float initializer is none of the weights (a defect of the exported module), or differs
                from them in size.
        """
        initializers, modified = model.graph.initializers, False
        for value in list(initializers.values()):
            tensor, old = value.const_value, str(value.name)
            assert tensor is not None
            name = self._name_of(old)
            if name is None:
                # One that points into another file already is not in the graph.
                if isinstance(tensor, packages.onnx_ir().ExternalTensor):
                    continue
                if tensor.nbytes > INLINE_LIMIT and tensor.dtype.is_floating_point() and not _is_mask(tensor):
                    raise RuntimeError(f"initializer '{old}' of {tensor.nbytes} bytes is not a weight of the model")
                continue
            # A value must leave the graph to be renamed.
            del initializers[old]
            value.name, value.const_value = name, self._pointer(name, old, tensor)
            initializers[name] = value
            modified = True
        return result(model, modified=modified)

    def _name_of(self, initializer: str) -> str | None:
        """The weight that an initializer is: its own name, or what follows "model." or "network.model."."""
        name = initializer
        # Part by part from the left, since weights have dots in their own names.
        while name not in self.spans:
            _, dot, name = name.partition(".")
            if not dot:
                return None
        return name

    def _pointer(self, name: str, initializer: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """External data in place of `tensor`."""
        offset, length = self.spans[name]
        if length != tensor.nbytes:
            raise RuntimeError(f"initializer '{initializer}': {tensor.nbytes} bytes in the graph, {length} in the file")
        pointer: ir.ExternalTensor = packages.onnx_ir().ExternalTensor(
            self.path.name, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir=self.path.parent
        )
        return pointer


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    """It has two values at most, like the biases (0, -inf) with which attention hides positions."""
    # In float32: with AVX-512 VBMI2, NumPy 2.4 sorts float16 wrongly where it holds -0.0, and finds dozens of values.
    return len(np.unique(tensor.numpy().astype(np.float32))) <= 2
