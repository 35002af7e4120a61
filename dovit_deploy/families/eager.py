"""The reference engine: PyTorch, rebuilt from the bundle's own weights, speaking the engine protocol."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import DENSE, graph_interfaces, stage_number
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.errors import CheckpointMismatch, ProviderMissing, UsageError
from dovit_deploy.families.registry import family_of, model_from_spec, state_from_bundle


class EagerEngine:
    """One stage as a PyTorch module."""

    def __init__(
        self, module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], *, on_gpu: bool = False
    ) -> None:
        self._module, self._on_gpu = module, on_gpu
        self._inputs, self._outputs = inputs, outputs

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the module on tensors."""
        # By default PyTorch lets convolutions round their inputs to TF32 on a GPU.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self._on_gpu else nullcontext()
        with torch.inference_mode(), exact:
            values = self._module(*(inputs[name] for name in self._inputs))
        values = values if isinstance(values, tuple) else (values,)
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Nothing is held beyond the module."""


class EagerBackend:
    """Buffers are tensors on one device.

    Args:
        threads: of one operator, for the whole process (PyTorch knows no other scope); None leaves it alone.
        device: "cpu", or "cuda", "cuda:1", ...: the reference on a GPU, in fp32 as on the CPU. The name `torch` of the
            registry is the CPU (docs/decisions/0008-the-reference-stays-on-the-cpu.md).

    Raises:
        UsageError: no name of a device.
        ProviderMissing: this PyTorch has no such device.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, *, threads: int | None = None, device: str = "cpu") -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = device_from_name(device)
        self._models: dict[str, torch.nn.Module] = {}

    def load(self, bundle: Bundle, graph: str) -> EagerEngine:
        """The module of `graph` with the bundle's weights."""
        model = self._model(bundle)
        spec = bundle.manifest.spec
        interface, family = graph_interfaces(spec)[graph], family_of(spec)
        if graph == DENSE:
            module = family.dense(model)
        else:
            number = stage_number(graph)
            assert number is not None, "PyTorch runs stages and the dense network; merging them is done in ONNX"
            module = family.stages(model)[number]
        return EagerEngine(module, interface.inputs, interface.outputs, on_gpu=self.device.type == "cuda")

    def upload(self, array: Array) -> Buffer:
        """A tensor over the same memory, or a copy on the GPU."""
        return torch.from_numpy(array).to(self.device)

    def download(self, buffer: Buffer) -> Array:
        """A NumPy array over the same memory, or a copy of what the GPU has."""
        array: Array = buffer.cpu().numpy()
        return array

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """A view."""
        return buffer[:count]

    def _model(self, bundle: Bundle) -> torch.nn.Module:
        # One model serves all stages and the dense network: they share its parameters.
        key = str(bundle.path)
        if key not in self._models:
            state = state_from_bundle(bundle)
            try:
                self._models[key] = model_from_spec(bundle.manifest.spec, state).to(self.device)
            except RuntimeError as error:
                raise CheckpointMismatch(f"{bundle.weights.name} does not fit the manifest's spec: {error}") from error
        return self._models[key]


def device_from_name(name: str) -> torch.device:
    """The device called `name`, proved to be there: PyTorch itself says so only where it is first used.

    Raises:
        UsageError: not "cpu" and no "cuda".
        ProviderMissing: this PyTorch has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' given; there are: cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' given; there are: cpu, cuda, cuda:N")
    if device.type == "cuda":
        _check_gpu(device.index or 0)
    return device


def _check_gpu(number: int) -> None:
    built = f"PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        raise ProviderMissing(f"{built} sees no GPU; a build of PyTorch with CUDA and NVIDIA's driver are needed")
    if number >= torch.cuda.device_count():
        raise ProviderMissing(f"{built} sees {torch.cuda.device_count()} GPUs; there is no cuda:{number}")


def backend(*, precision: str, threads: int | None) -> EagerBackend:
    """Entry point of the engines' registry; `precision` was checked there."""
    del precision
    return EagerBackend(threads=threads)


def probe() -> str:
    """Multiply two small matrices on the CPU."""
    product = torch.full((2, 2), 3.0) @ torch.eye(2)
    if product.tolist() != [[3.0, 3.0], [3.0, 3.0]]:
        raise ArithmeticError(f"computed {product.tolist()}, expected 3 everywhere")
    return str(torch.__version__)
