"""Sessions of ONNX Runtime that run on the GPU, all of them, or are refused.

ONNX Runtime by itself goes on quietly on the CPU where CUDA does not load, or where one operator has no CUDA kernel.
Three things are asked for here: a distribution with the CUDA provider, a GPU, and that ONNX Runtime itself refuse a
graph of which any node would run on the CPU (docs/decisions/0007-no-node-on-the-cpu.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.engines.gpu_device import gpu_device
from dovit_deploy.engines.onnxruntime_cpu import load_errors
from dovit_deploy.engines.registry import CUDA_INSTALL
from dovit_deploy.errors import DeviceOutOfMemory, DovitError, GraphMismatch, ProviderMissing

PROVIDER = "CUDAExecutionProvider"

NO_FALLBACK = "session.disable_cpu_ep_fallback"
"""With it ONNX Runtime refuses a graph of which any node would run on the CPU."""

FATAL, WARNING = 4, 2
"""Levels of ONNX Runtime's log; the second is its default."""


def cuda_runtime() -> Any:  # noqa: ANN401
    """ONNX Runtime with CUDA and its libraries loaded, on a machine with a GPU.

    Raises:
        PackageMissing: ONNX Runtime is not installed.
        ProviderMissing: it has no CUDA provider, there is no GPU, or a CUDA library is missing.
    """
    runtime = packages.onnxruntime(install=CUDA_INSTALL)
    if PROVIDER not in runtime.get_available_providers():
        raise ProviderMissing(
            f"engine cuda needs onnxruntime-gpu; the onnxruntime {runtime.__version__} that is installed has no "
            f"{PROVIDER}, and both unpack into one folder; install it with: {CUDA_INSTALL}"
        )
    gpu_device()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):
        # Finds the libraries of pip's nvidia packages; since 1.21. It prints what it misses, which is said below.
        runtime.preload_dlls()
    return runtime


def session_on_gpu(runtime: Any, model: Path | bytes, *, described: str) -> Any:  # noqa: ANN401
    """A session of which every node runs on the GPU.

    Args:
        model: a file, or a serialised graph.
        described: what an error calls it.

    Raises:
        ProviderMissing: some node would run on the CPU.
        GraphMismatch: ONNX Runtime refuses the graph.
    """
    options = runtime.SessionOptions()
    options.add_session_config_entry(NO_FALLBACK, "1")
    source = model if isinstance(model, bytes) else str(model)
    # What it logs of a failure comes as an exception too.
    options.log_severity_level = FATAL
    runtime.set_default_logger_severity(FATAL)
    try:
        session = runtime.InferenceSession(source, options, providers=[(PROVIDER, {"device_id": 0})], enable_fallback=0)
    except load_errors(runtime) as error:
        raise _refusal(error, described, Path(runtime.__file__).parent / "capi") from error
    finally:
        runtime.set_default_logger_severity(WARNING)
    if session.get_providers()[:1] != [PROVIDER]:
        raise ProviderMissing(f"{described} would run on {', '.join(session.get_providers())}, not on the GPU")
    return session


def _refusal(error: Exception, described: str, libraries: Path) -> DovitError:
    """What a failure to make a session means."""
    first = str(error).partition("\n")[0]
    if memory_is_short(error):
        return DeviceOutOfMemory(f"the GPU has too little memory for {described}: {first}")
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
    """Why the provider's library did not load, which ONNX Runtime only logs.

    To be asked after a failure: loaded before ONNX Runtime has loaded it, the library would not know its host.
    """
    library = folder / "libonnxruntime_providers_cuda.so"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return None


def memory_is_short(error: Exception) -> bool:
    """Whether ONNX Runtime failed for want of device memory, going by its words."""
    return any(words in str(error) for words in ("out of memory", "allocate memory", "Available memory of"))
