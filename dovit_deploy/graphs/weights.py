"""Where are a graph's weights, and in which type? In safetensors files that all graphs of a folder share, as ONNX
external data.

A safetensors file is 8 bytes of header length (little-endian), a JSON header and the raw little-endian tensors, so it
serves as external data as it is: a tensor's offset in the file is 8 + header length + its `data_offsets[0]`
(docs/bundle-format.md).

Large weights may be stored in float16 (`export --compact`). A graph then reads them through one Cast to float32, which
engines compute when they load it. Passes over a bundle's graphs never see that: `widened` comes first, and all of them
work on float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from dovit_deploy import packages
from dovit_deploy.bundle.weights import TensorSpan, spans_from_file
from dovit_deploy.errors import GraphMismatch, shown
from dovit_deploy.graphs.passes import insert, result

if TYPE_CHECKING:
    import onnx_ir as ir

INLINE_LIMIT = 4096
"""Bytes; scalars and small tables stay in the graph. A larger float tensor that is no mask is a defect."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in one of the files."""

    name: str
    file: Path
    span: TensorSpan


@dataclass(frozen=True)
class SharedWeights:
    """Safetensors files of one folder, and where in them each tensor is.

    Calling it is a pass: it lets a graph point into the files (`graphs/passes.py` says what a pass is).
    """

    tensors: Mapping[str, StoredTensor]

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
    def read(cls, *paths: Path) -> SharedWeights:
        """Read the headers of the files at `paths`; the package `safetensors` does not give offsets away."""
        found = ((path, name, span) for path in paths for name, span in spans_from_file(path).items())
        return cls({name: StoredTensor(name, path, span) for path, name, span in found})

    def __call__(self, model: ir.Model) -> ir.passes.PassResult:
        """Let every initializer that is one of the weights point into its file, under the tensor's own name.

        Requires initializers named after the weights, with or without a path in front ("model.").
        Ensures that no large float tensor stays in the graph, and that what is read in float32 and stored in float16
        goes through one Cast, which all of its readers share.

        Raises:
            RuntimeError: a large float initializer is none of the weights (a defect of the exported module), or differs
                from them in size.
        """
        first, modified = next(iter(model.graph), None), False
        for value in list(model.graph.initializers.values()):
            name = self._name_of(str(value.name))
            if name is None:
                _refuse_large(value)
            elif not _points_into(value, self.tensors[name].file):
                self._point(model.graph, value, name, before=first)
                modified = True
        return result(model, modified=modified)

    def _point(self, graph: ir.Graph, value: ir.Value, name: str, *, before: ir.Node | None) -> None:
        """Make `value` external data and call it `name`; a Cast of it is inserted where it needs one."""
        onnx_ir, stored, old, tensor = packages.onnx_ir(), self.tensors[name], str(value.name), value.const_value
        assert tensor is not None
        # A value must leave the graph to be renamed.
        del graph.initializers[old]
        value.name = name
        graph.initializers[name] = value
        dtype = tensor.dtype
        if before is not None and dtype == onnx_ir.DataType.FLOAT and stored.span.dtype == "F16":
            _read_through_cast(value, before=before)
            dtype = onnx_ir.DataType.FLOAT16
        value.const_value = _pointer(stored, tensor, dtype, initializer=old)

    def _name_of(self, initializer: str) -> str | None:
        """The weight that an initializer is: its own name, or what follows "model." or "network.model."."""
        name = initializer
        # Part by part from the left, since weights have dots in their own names.
        while name not in self.tensors:
            _, dot, name = name.partition(".")
            if not dot:
                return None
        return name


def widened(model: ir.Model) -> ir.passes.PassResult:
    """Ensures that weights which are stored in float16 are float32 tensors of the graph, and that their Cast is gone.

    `SharedWeights` is the way back.

    Raises:
        GraphMismatch: one of them is read in another way than through a Cast to float32.
    """
    onnx_ir, modified = packages.onnx_ir(), False
    for value in model.graph.initializers.values():
        stored = value.const_value
        if not isinstance(stored, onnx_ir.ExternalTensor) or stored.dtype != onnx_ir.DataType.FLOAT16:
            continue
        for node in [node for node, _ in value.uses()]:
            if not _is_widening(node):
                raise GraphMismatch(
                    f"graph '{shown(str(model.graph.name))}' reads the weight '{shown(str(value.name))}', which is "
                    "stored in float16, in another way than as float32; export again"
                )
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
        # Not `value.dtype = ...`: that changes the type object, which a model shares with its clones.
        value.type, value.const_value = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), _in_float32(stored)
        modified = True
    return result(model, modified=modified)


def _in_float32(stored: ir.ExternalTensor) -> ir.LazyTensor:
    # Made when it is asked for, and not kept: graphs that share a weight do not each hold a copy of it.
    onnx_ir = packages.onnx_ir()
    tensor: ir.LazyTensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(stored.numpy().astype(np.float32), name=stored.name),
        dtype=onnx_ir.DataType.FLOAT,
        shape=stored.shape,
        name=stored.name,
    )
    return tensor


def _refuse_large(value: ir.Value) -> None:
    """Raise RuntimeError for a large float tensor in the graph that is no mask."""
    tensor = value.const_value
    assert tensor is not None
    # One that points into another file already is not in the graph.
    if isinstance(tensor, packages.onnx_ir().ExternalTensor):
        return
    if tensor.nbytes > INLINE_LIMIT and tensor.dtype.is_floating_point() and not _is_mask(tensor):
        raise RuntimeError(f"initializer '{value.name}' of {tensor.nbytes} bytes is not a weight of the model")


def _points_into(value: ir.Value, file: Path) -> bool:
    tensor = value.const_value
    return isinstance(tensor, packages.onnx_ir().ExternalTensor) and Path(tensor.path) == file


def _read_through_cast(value: ir.Value, *, before: ir.Node) -> None:
    """Make the initializer `value` float16, and all that read it read its Cast to float32."""
    onnx_ir, readers = packages.onnx_ir(), list(value.uses())
    cast = insert(before, "Cast", [value], f"{value.name}.fp32", {"to": onnx_ir.DataType.FLOAT})
    cast.type, cast.shape = value.type, value.shape
    value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    for node, position in readers:
        node.replace_input_with(position, cast)


def _is_widening(node: ir.Node) -> bool:
    """Whether it only makes float32 of what it reads."""
    to = node.attributes.get("to")
    full = to is not None and to.value == packages.onnx_ir().DataType.FLOAT
    return node.op_type == "Cast" and not node.domain and full and not node.outputs[0].is_graph_output()


def _pointer(
    stored: StoredTensor, tensor: ir.TensorProtocol, dtype: ir.DataType, *, initializer: str
) -> ir.ExternalTensor:
    """External data of type `dtype` in place of `tensor`."""
    span, file, needed = stored.span, stored.file, int(tensor.size * dtype.itemsize)
    if span.length != needed:
        raise RuntimeError(f"initializer '{initializer}': {needed} bytes in the graph, {span.length} in the file")
    pointer: ir.ExternalTensor = packages.onnx_ir().ExternalTensor(
        file.name, span.start, span.length, dtype, shape=tensor.shape, name=stored.name, base_dir=file.parent
    )
    return pointer


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    """It has two values at most, like the biases (0, -inf) with which attention hides positions."""
    # In float32: with AVX-512 VBMI2, NumPy 2.4 sorts float16 wrongly where it holds -0.0, and finds dozens of values.
    return len(np.unique(tensor.numpy().astype(np.float32))) <= 2
