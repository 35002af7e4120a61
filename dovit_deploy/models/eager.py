"""The reference engine: PyTorch, rebuilt from the bundle's own weights, speaking the engine protocol."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch

from dovit_deploy.bundle.directory import Bundle
from dovit_deploy.bundle.interface import graph_interfaces
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.errors import CheckpointMismatch
from dovit_deploy.models.build import model_from_spec
from dovit_deploy.models.families import family_of


class EagerEngine:
    """One stage as a PyTorch module."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._module = module
        self._inputs, self._outputs = inputs, outputs

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the module on tensors."""
        with torch.inference_mode():
            values = self._module(*(inputs[name] for name in self._inputs))
        values = values if isinstance(values, tuple) else (values,)
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Nothing is held beyond the module."""


class EagerBackend:
    """Buffers are CPU tensors.

    Args:
        threads: of one operator, for the whole process (PyTorch knows no other scope); None leaves it alone.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._models: dict[str, torch.nn.Module] = {}

    def load(self, bundle: Bundle, graph: str) -> EagerEngine:
        """The module of `graph` with the bundle's weights."""
        model = self._model(bundle)
        spec = bundle.manifest.spec
        interface, family = graph_interfaces(spec)[graph], family_of(spec)
        module = family.dense(model) if graph == "dense" else family.stages(model)[int(graph[5:])]
        return EagerEngine(module, interface.inputs, interface.outputs)

    def upload(self, array: Array) -> Buffer:
        """A tensor over the same memory."""
        return torch.from_numpy(array)

    def download(self, buffer: Buffer) -> Array:
        """A NumPy array over the same memory."""
        array: Array = buffer.numpy()
        return array

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """A view."""
        return buffer[:count]

    def _model(self, bundle: Bundle) -> torch.nn.Module:
        key = str(bundle.path)
        if key not in self._models:
            state = safetensors.torch.load_file(bundle.weights)
            try:
                self._models[key] = model_from_spec(bundle.manifest.spec, state)
            except RuntimeError as error:
                raise CheckpointMismatch(f"{bundle.weights.name} does not fit the manifest's spec: {error}") from error
        return self._models[key]


def backend(*, precision: str, threads: int | None) -> EagerBackend:
    """Entry point of the engines' registry; `precision` was checked there."""
    del precision
    return EagerBackend(threads=threads)
