"""The plugins of `KINDS` (TokenGather and others) for TensorRT: compiled, or as Python classes.

The environment variable `DOVIT_PLUGIN_LIBRARY` names the library that `make plugins` compiles (csrc/token_plugins.cpp).
Without it the Python classes of this file serve, for machines without TensorRT's headers: they have the same names and
do the same. Building with them needs neither a GPU nor a driver; running compiles the kernels for the GPU (kernels.py).
A process uses one or the other, never both, because TensorRT's registry holds each name once.

An engine holds calls of plugins, not their code, so it must run with what it was built with: hence `plugin_digest`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dovit_deploy.bundle.bundle import file_entry
from dovit_deploy.engines.plugins.kernels import kernel_source
from dovit_deploy.engines.plugins.loaded import current_kernels
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.errors import EnvironmentProblem
from dovit_deploy.graphs.plugins import DOMAIN, GATHER, INDEX, PARTITION, SCATTER, SCATTER_VALID, VERSION

VARIABLE = "DOVIT_PLUGIN_LIBRARY"

BEHAVIOUR = 1
"""Raise it when the Python classes change what they do (shapes, types, launches): engines are then rebuilt.

The kernels' source is in the digest itself; the text of this file is not, so that moving or rewording it rebuilds
nothing.
"""

# What a tensor is: rows (N, C) of the type of the tokens; int64; the int32 scalar that TensorRT requires for a size.
ROWS, INTEGERS, SIZE = "rows", "integers", "size"


@dataclass(frozen=True)
class PluginKind:
    """A plugin as data: the role of each of its tensors (`ROWS`, `INTEGERS` or `SIZE`)."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


KINDS = (
    PluginKind(GATHER, (ROWS, INTEGERS), (ROWS,)),
    PluginKind(SCATTER, (ROWS, INTEGERS, ROWS), (ROWS,)),
    PluginKind(SCATTER_VALID, (ROWS, INTEGERS, ROWS, INTEGERS), (ROWS,)),
    PluginKind(PARTITION, (INTEGERS,), (INTEGERS, INTEGERS)),
    PluginKind(INDEX, (INTEGERS,), (INTEGERS, SIZE)),
)


def compiled_library() -> Path | None:
    """The library that `DOVIT_PLUGIN_LIBRARY` names; None where the variable is not set.

    Raises:
        EnvironmentProblem: there is no such file.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    path = Path(named).absolute()
    if not path.is_file():
        raise EnvironmentProblem(
            f"{VARIABLE}: no plugin library at {path}; compile it with: make plugins TENSORRT_INCLUDE=..., "
            f"or unset {VARIABLE} to use the Python plugins"
        )
    return path


def plugin_digest() -> str:
    """SHA-256 of what the plugins do: of the compiled library, or of the kernels' source and what calls them.

    Raises:
        EnvironmentProblem: see `compiled_library`.
    """
    library = compiled_library()
    if library is not None:
        return file_entry(library).sha256
    facts = {
        "behaviour": BEHAVIOUR,
        "namespace": DOMAIN,
        "version": VERSION,
        "kinds": [asdict(kind) for kind in KINDS],
        "kernels": kernel_source(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def registered_plugins(package: TensorRtPackage) -> Any:  # noqa: ANN401  creators, or a library's handle
    """Register the plugins with TensorRT, once per process; the cache keeps alive what the registry does not.

    Raises:
        EnvironmentProblem: the compiled library does not exist, or does not load.
    """
    library = compiled_library()
    if library is None:
        return register_plugins(package.module)
    handle = package.module.get_plugin_registry().load_library(str(library))
    if handle is None:
        raise EnvironmentProblem(
            f"{VARIABLE}: TensorRT does not load {library}; compile it for {package.engine} {package.version} with: "
            "make plugins TENSORRT_INCLUDE=..."
        )
    return handle


def register_plugins(trt: Any) -> list[Any]:  # noqa: ANN401  the module `tensorrt` or `tensorrt_rtx`
    """Register the Python plugins; the caller must keep the returned creators alive, the registry does not."""
    creators = plugin_creators(trt)
    registry = trt.get_plugin_registry()
    for creator in creators:
        registry.register_creator(creator, DOMAIN)
    return creators


def plugin_creators(trt: Any) -> list[Any]:  # noqa: ANN401
    """One IPluginCreatorV3One for each of `KINDS`."""
    creator = type("TokenPluginCreator", (_TokenPluginCreator, trt.IPluginCreatorV3One), {"trt": trt})
    return [creator(kind) for kind in KINDS]


class _TokenPluginCreator:
    """Makes plugins of one kind for TensorRT; `plugin_creators` adds the base class of the package in use."""

    trt: Any

    def __init__(self, kind: PluginKind) -> None:
        self.trt.IPluginCreatorV3One.__init__(self)
        self.kind = kind
        self.name = kind.name
        self.plugin_namespace = DOMAIN
        self.plugin_version = VERSION
        self.field_names = self.trt.PluginFieldCollection([])

    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:  # noqa: ANN401
        return _plugin_class(self.trt)(self.kind)


def _plugin_class(trt: Any) -> Any:  # noqa: ANN401
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    return type("TokenPlugin", (_TokenPlugin, *bases), {"trt": trt, "interfaces": bases})


class _TokenPlugin:
    """A plugin of any kind; `_plugin_class` adds the package's base classes, whose methods these override."""

    trt: Any
    interfaces: tuple[Any, ...]

    def __init__(self, kind: PluginKind) -> None:
        # The bases are bound by pybind11: each needs its own initialiser to be called.
        for interface in self.interfaces:
            interface.__init__(self)
        self.kind = kind
        self.num_outputs = len(kind.outputs)
        self.plugin_name = kind.name
        self.plugin_namespace = DOMAIN
        self.plugin_version = VERSION

    def get_capability_interface(self, kind: Any) -> _TokenPlugin:  # noqa: ANN401
        # One class is core, build and runtime at once, so every capability is this object.
        return self

    def clone(self) -> _TokenPlugin:
        return type(self)(self.kind)

    def attach_to_context(self, context: Any) -> _TokenPlugin:  # noqa: ANN401
        # TensorRT wants a clone for every execution context.
        return self.clone()

    def get_fields_to_serialize(self) -> Any:  # noqa: ANN401
        return self.trt.PluginFieldCollection([])

    def set_tactic(self, tactic: int) -> None:
        """There is only one tactic."""

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Nothing depends on sizes before the run."""

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Nothing is prepared for a size."""

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        types = {ROWS: input_types[0], INTEGERS: self.trt.int64, SIZE: self.trt.int32}
        return [types[role] for role in self.kind.outputs]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expressions: Any) -> list[Any]:  # noqa: ANN401
        output, scalar = self.trt.DimsExprs(inputs[0]), self.trt.DimsExprs(0)
        if self.kind.name == PARTITION:
            return [output, scalar]
        if self.kind.name == INDEX:
            # Only the device knows the count. Tuned for half of the tokens, with room for all of them.
            total = inputs[0][0]
            half = expressions.operation(self.trt.DimensionOperation.CEIL_DIV, total, expressions.constant(2))
            # 1: the size is this plugin's second output.
            output[0] = expressions.declare_size_tensor(1, half, total)
            return [output, scalar]
        if self.kind.name == GATHER:
            output[0] = inputs[1][0]
        return [output]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        tensor = tensors[position].desc
        if tensor.format != self.trt.TensorFormat.LINEAR:
            return False
        role = (*self.kind.inputs, *self.kind.outputs)[position]
        if role != ROWS:
            return bool(tensor.type == (self.trt.int32 if role == SIZE else self.trt.int64))
        # All rows have the type of the first tensor, which may be any that a copy can move.
        if position != 0:
            return bool(tensor.type == tensors[0].desc.type)
        return tensor.type in (self.trt.float32, self.trt.float16, self.trt.bfloat16)

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launch the kernel of this plugin; raises `ProviderMissing` where there is no driver."""
        # Looked up at every call: only now is it certain that the engine's context is current.
        kernels = current_kernels()
        total = input_desc[0].dims[0]
        # Masks are int64 in the graphs, which sum them up: 8 bytes an entry.
        if self.kind.name == PARTITION:
            kernels.compact(*inputs, *outputs, mask_bytes=8, total=total, stream=stream)
        elif self.kind.name == INDEX:
            kernels.compact_index(*inputs, *outputs, mask_bytes=8, total=total, stream=stream)
        else:
            row_bytes, kept = input_desc[0].dims[1] * input_desc[0].type.itemsize, input_desc[1].dims[0]
            sizes = {"total": total, "kept": kept, "row_bytes": row_bytes, "stream": stream}
            if self.kind.name == GATHER:
                kernels.gather(*inputs, *outputs, **sizes)
            else:
                # The fourth input is that of TokenScatterValid alone.
                kernels.scatter(*inputs[:3], *outputs, **sizes, valid=sum(inputs[3:]))
