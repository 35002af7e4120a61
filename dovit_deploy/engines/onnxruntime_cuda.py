"""ONNX Runtime on an NVIDIA GPU: every node runs there, or the session is refused, and tensors stay on the device.

On its own, ONNX Runtime silently falls back to the CPU where CUDA does not load, or where one operator has no CUDA
kernel. Three things are required here: a distribution with the CUDA provider, a GPU, and that ONNX Runtime itself
refuses a graph of which any node would run on the CPU (docs/decisions/0007-no-node-on-the-cpu.md).

A bundle's fast graphs are loaded (attention is then a fused kernel), in fp16 after the pass of `half_precision`.
Between stages only a gate's count reaches the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import WEIGHTS, Bundle
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.onnxruntime import check_interface, load_errors
from dovit_deploy.engines.registry import CUDA_INSTALL
from dovit_deploy.engines.square import MATRIX, SQUARE_MODEL, check_square
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory, DovitError, GraphMismatch, ProviderMissing
from dovit_deploy.graphs.forms import half_passes, write_derived

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
NO_FALLBACK = "session.disable_cpu_ep_fallback"
"""With this option ONNX Runtime refuses a graph of which any node would run on the CPU."""

ON_GPU = {"device_id": "0", "use_tf32": "0"}
"""TF32, on by default, has 10 bits of mantissa: fp32 would not be fp32, nor would decisions be in fp16 graphs."""

CUDA_FAILURE = re.compile(r"\bCU\w+ failure \d+")
"""How ONNX Runtime's messages begin where CUDA, cuDNN or cuBLAS failed; there is no error class for it."""

FATAL, WARNING = 4, 2
"""Levels of ONNX Runtime's log; the second is its default."""
ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
"""Element types of the tensors that stages hand to each other."""


def cuda_runtime() -> Any:  # noqa: ANN401
    """ONNX Runtime with CUDA and its libraries loaded, on a machine with a GPU.

    Raises:
        PackageMissing: ONNX Runtime is not installed.
        ProviderMissing: it has no CUDA provider, or there is no GPU.
    """
    runtime = packages.onnxruntime(install=CUDA_INSTALL)
    if PROVIDER not in runtime.get_available_providers():
        raise ProviderMissing(
            f"engine cuda needs onnxruntime-gpu; the installed onnxruntime {runtime.__version__} has no "
            f"{PROVIDER}, and both unpack into one folder; install it with: {CUDA_INSTALL}"
        )
    gpu_device()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):
        # Loads the libraries of pip's nvidia packages; since 1.21. It prints what is missing; `_refusal` reports that.
        runtime.preload_dlls()
    return runtime


def session_on_gpu(runtime: Any, model: Path | bytes, *, described: str) -> Any:  # noqa: ANN401
    """A session of which every node runs on the GPU.

    Args:
        model: a file, or a serialised graph.
        described: its name in errors.

    Raises:
        ProviderMissing: some node would run on the CPU, or a CUDA library is missing.
        DeviceOutOfMemory: the GPU has too little memory.
        GraphMismatch: ONNX Runtime refuses the graph.
    """
    options = runtime.SessionOptions()
    options.add_session_config_entry(NO_FALLBACK, "1")
    source = model if isinstance(model, bytes) else str(model)
    # Everything that it logs about a failure is also in the exception.
    options.log_severity_level = FATAL
    runtime.set_default_logger_severity(FATAL)
    try:
        # The Python class would catch the refusal and retry on the CPU: `enable_fallback=0`.
        session = runtime.InferenceSession(source, options, providers=[(PROVIDER, ON_GPU)], enable_fallback=0)
    except load_errors(runtime) as error:
        raise _refusal(error, described, Path(runtime.__file__).parent / "capi") from error
    finally:
        runtime.set_default_logger_severity(WARNING)
    # The CPU's provider always follows as the last one, with no nodes.
    if session.get_providers()[:1] != [PROVIDER]:
        raise ProviderMissing(f"{described} would run on {', '.join(session.get_providers())}, not on the GPU")
    return session


def _refusal(error: Exception, described: str, libraries: Path) -> DovitError:
    """ONNX Runtime's error as one of ours; `libraries`: the folder of its providers."""
    first = str(error).partition("\n")[0]
    if memory_is_short(error):
        return DeviceOutOfMemory(f"the GPU has too little memory for {described}: {first}")
    # With NO_FALLBACK, ONNX Runtime names the "CPU EP" both where CUDA did not load and where one node has no kernel.
    if "CPU EP" not in first:
        return GraphMismatch(f"ONNX Runtime cannot load {described}: {first}")
    missing = _missing_library(libraries)
    if missing:
        return ProviderMissing(
            f"ONNX Runtime's CUDA provider does not load: {missing}; "
            "install CUDA and cuDNN with: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return ProviderMissing(f"{described} would not run on the GPU alone: {first}")


def _missing_library(folder: Path) -> str | None:
    """Why the provider's library does not load, which ONNX Runtime only logs; None if it does.

    To be called only after a failure: loaded before ONNX Runtime itself loads it, the library would not find its host.
    """
    library = folder / "libonnxruntime_providers_cuda.so"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return None


def memory_is_short(error: Exception) -> bool:
    """Whether ONNX Runtime failed for lack of device memory; only its message says so, there is no error class."""
    return any(words in str(error) for words in ("out of memory", "allocate memory", "Available memory of"))


@dataclass(frozen=True)
class OrtArray:
    """An `OrtValue` on the GPU, or the first `count` entries of one along its first axis."""

    value: Any
    count: int | None = None

    @property
    def shape(self) -> list[int]:
        """Shape of the part that is used."""
        whole = list(self.value.shape())
        return whole if self.count is None else [self.count, *whole[1:]]

    def numpy(self) -> Array:
        """A copy on the host."""
        whole = np.asarray(self.value.numpy())
        return whole if self.count is None else whole[: self.count]


class OnnxRuntimeCudaEngine:
    """One ONNX graph in one inference session; inputs and outputs are `OrtArray`s."""

    def __init__(self, session: Any, errors: tuple[type[Exception], ...]) -> None:  # noqa: ANN401  it has no types
        self._session, self._errors = session, errors
        self._inputs = [port.name for port in session.get_inputs()]
        self._outputs = [port.name for port in session.get_outputs()]

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run the graph; returns when the GPU has finished.

        Raises:
            DeviceOutOfMemory: the GPU has too little memory.
            DeviceFailed: CUDA or one of its libraries failed.
        """
        binding = self._session.io_binding()
        for name in self._inputs:
            _bind(binding, name, inputs[name])
        for name in self._outputs:
            # No address: ONNX Runtime allocates the output, on the device.
            binding.bind_output(name, DEVICE)
        try:
            self._session.run_with_iobinding(binding)
        except self._errors as error:
            first = str(error).partition("\n")[0]
            if memory_is_short(error):
                raise DeviceOutOfMemory(f"the GPU has too little memory for this run: {first}") from error
            if CUDA_FAILURE.search(first):
                raise DeviceFailed(f"the GPU failed in this run: {first}") from error
            raise
        values = (OrtArray(value) for value in binding.get_outputs())
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drop the session, and with it its memory."""
        self._session = None


def _bind(binding: Any, name: str, given: OrtArray) -> None:  # noqa: ANN401
    """Bind an input; a narrowed one as the same memory under a shorter shape, without a copy."""
    value = given.value
    if given.count is None:
        binding.bind_ortvalue_input(name, value)
    else:
        # A binding by address keeps nothing alive; the caller's `inputs` do.
        binding.bind_input(name, DEVICE, 0, ELEMENTS[value.data_type()], given.shape, value.data_ptr())


class OnnxRuntimeCudaBackend:
    """Loads a bundle's graphs on the first GPU; buffers are `OrtArray`s.

    Args:
        precision: "fp32" or "fp16"; fp16 is derived at load, which needs the package `onnx`.

    Raises:
        ProviderMissing: no driver, no GPU, or an ONNX Runtime without CUDA.
    """

    name = "cuda"

    def __init__(self, *, precision: str = "fp32") -> None:
        self.precision = precision
        self._runtime = cuda_runtime()

    def load(self, bundle: Bundle, graph: str) -> OnnxRuntimeCudaEngine:
        """Load `graph` and its share of the weights.

        Raises:
            ProviderMissing, DeviceOutOfMemory, GraphMismatch: see `session_on_gpu`.
        """
        described = f"{bundle.path.name}/{bundle.graph(graph, fast=True).name}"
        # ONNX Runtime reads graph and weights while it makes the session; afterwards the files are not needed.
        with tempfile.TemporaryDirectory(prefix="dovit-") as folder, tempfile.TemporaryDirectory() as half:
            # A copy of what was checked: the bundle's own files may change at any moment.
            path = bundle.copied_graph(graph, Path(folder), fast=True)
            if self.precision == "fp16":
                path = write_half_precision(path, path.with_name(WEIGHTS), Path(half))
                described += " in fp16"
            session = session_on_gpu(self._runtime, path, described=described)
        check_interface(session, bundle, graph, half=self.precision == "fp16")
        return OnnxRuntimeCudaEngine(session, load_errors(self._runtime))

    def upload(self, array: Array) -> Buffer:
        return OrtArray(self._runtime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), DEVICE, 0))

    def download(self, buffer: Buffer) -> Array:
        array: Array = buffer.numpy()
        return array

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        return OrtArray(buffer.value, count)


def write_half_precision(path: Path, weights: Path, folder: Path) -> Path:
    """Write the fp16 form of the graph at `path`, whose large tensors are in `weights`, to `folder`."""
    write_derived([path], folder, weights=[weights], passes=half_passes())
    return folder / path.name


def backend(*, precision: str, threads: int | None) -> OnnxRuntimeCudaBackend:
    """Entry point of the registry, which has checked `precision`; a GPU has no use for `threads`."""
    del threads
    return OnnxRuntimeCudaBackend(precision=precision)


def probe() -> str:
    """Run a small model on the GPU, and nothing of it on the CPU."""
    # `session_on_gpu` refuses the silent fallback to the CPU that ONNX Runtime makes.
    runtime = cuda_runtime()
    session = session_on_gpu(runtime, SQUARE_MODEL, described="a small model")
    (result,) = session.run(["y"], {"x": MATRIX})
    check_square(result)
    device = gpu_device()
    return f"{runtime.__version__} on {device.name}, compute capability {device.compute_capability}"
