"""NVIDIA's driver called through ctypes, without any Python package: which GPU is this, and CUDA graphs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory, ProviderMissing

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: a stream that does not wait for the default stream, which would break another's capture."""
OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""
GRAPH_CALLS = ("cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch")
THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not invalidate the capture."""


@dataclass(frozen=True)
class GpuDevice:
    """A GPU: its name and compute capability ("8.6")."""

    name: str
    compute_capability: str


def gpu_device(number: int = 0) -> GpuDevice:
    """The driver's GPU `number`.

    Raises:
        ProviderMissing: no driver, or no such GPU.
    """
    driver, device = nvidia_driver(), ctypes.c_int()
    _check_device(driver.cuInit(0), "the driver does not start")
    _check_device(driver.cuDeviceGet(ctypes.byref(device), number), f"no GPU {number}")
    name = ctypes.create_string_buffer(256)
    _check_device(driver.cuDeviceGetName(name, len(name), device), "the GPU's name is unknown")
    # By attributes: cuDeviceComputeCapability is deprecated.
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        _check_device(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "its capability is unknown")
        capability.append(str(value.value))
    return GpuDevice(name.value.decode(errors="replace"), ".".join(capability))


def nvidia_driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        ProviderMissing: it is not installed.
    """
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ProviderMissing(f"no NVIDIA driver here ({DRIVER} cannot be loaded); a GPU is needed") from error


class CudaGraph:
    """An instantiated graph that runs on the stream on which it was captured."""

    def __init__(self, driver: Any, handle: ctypes.c_void_p, stream: int) -> None:  # noqa: ANN401  a ctypes.CDLL
        self._driver, self._handle, self._stream = driver, handle, ctypes.c_void_p(stream)

    def enqueue(self) -> None:
        _check_graph(self._driver.cuGraphLaunch(self._handle, self._stream), "a captured graph cannot be launched")

    def free(self) -> None:
        if self._handle:
            self._driver.cuGraphExecDestroy(self._handle)
            self._handle = ctypes.c_void_p()


def captured(driver: Any, stream: int, work: Callable[[], None]) -> CudaGraph:  # noqa: ANN401
    """What `work` enqueues on `stream`, captured instead of executed.

    These are the driver's own calls, so the stream of any package will do: PyCUDA has no graphs, and those of cuda-core
    change their names from version to version.

    Args:
        driver: the driver's library, see `nvidia_driver`.

    Raises:
        DeviceFailed: it cannot be captured, or the driver is too old for it.
    """
    missing = [name for name in GRAPH_CALLS if not hasattr(driver, name)]
    if missing:
        raise DeviceFailed(f"CUDA graph: the NVIDIA driver is too old, it has no {missing[0]}")
    # Wrapped: ctypes passes a plain int as a C int, which cuts an address in half.
    handle_of_stream, graph, handle = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    # "_v2" as cuda.h maps the name: the symbol without it is an older function that takes no mode.
    _check_graph(driver.cuStreamBeginCapture_v2(handle_of_stream, THREAD_LOCAL), "a capture cannot begin")
    try:
        work()
    finally:
        # Also after an error: otherwise the stream stays in capture mode for good.
        status = driver.cuStreamEndCapture(handle_of_stream, ctypes.byref(graph))
    _check_graph(status, "this work cannot be captured")
    try:
        # Not cuGraphInstantiate, whose parameters changed with CUDA 12.
        status = driver.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, ctypes.c_ulonglong(0))
        _check_graph(status, "a captured graph cannot be made runnable")
    finally:
        # What was instantiated does not depend on it.
        driver.cuGraphDestroy(graph)
    return CudaGraph(driver, handle, stream)


def _check_device(status: int, what: str) -> None:
    if status:
        raise ProviderMissing(f"NVIDIA driver: {what} (error {status}); check it with: nvidia-smi")


def _check_graph(status: int, what: str) -> None:
    if status == OUT_OF_MEMORY:
        raise DeviceOutOfMemory(f"CUDA graph: {what}, the GPU is out of memory; end other programs that use it")
    if status:
        raise DeviceFailed(f"CUDA graph: {what} (error {status} of the driver)")
