"""The GPU of this machine, asked of NVIDIA's driver itself: no package is needed for it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dovit_deploy.errors import DeviceFailed, ProviderMissing

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class GpuDevice:
    """A GPU: its name and compute capability ("8.6")."""

    name: str
    compute_capability: str


def gpu_device(number: int = 0) -> GpuDevice:
    """The GPU called `number` by the driver.

    Raises:
        ProviderMissing: no driver, or no such GPU.
    """
    driver, device = nvidia_driver(), ctypes.c_int()
    _check(driver.cuInit(0), "the driver does not start")
    _check(driver.cuDeviceGet(ctypes.byref(device), number), f"no GPU {number}")
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGetName(name, len(name), device), "the GPU does not tell its name")
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "its capability is unknown")
        capability.append(str(value.value))
    return GpuDevice(name.value.decode(errors="replace"), ".".join(capability))


def nvidia_driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        ProviderMissing: there is none.
    """
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ProviderMissing(f"no NVIDIA driver here ({DRIVER} cannot be loaded); a GPU is needed") from error


def _check(status: int, what: str) -> None:
    if status:
        raise ProviderMissing(f"NVIDIA driver: {what} (error {status}); check it with: nvidia-smi")


# Work captured as a CUDA graph, by the driver's own calls: the stream of any package will do.
#
# PyCUDA has no graphs of its own, and those of cuda-core change their names from version to version.

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is no concern of the capture."""


class CudaGraph:
    """An instantiated graph that runs on the stream on which it was captured."""

    def __init__(self, driver: Any, handle: ctypes.c_void_p, stream: int) -> None:  # noqa: ANN401  a ctypes.CDLL
        self._driver, self._handle, self._stream = driver, handle, ctypes.c_void_p(stream)

    def enqueue(self) -> None:
        """Enqueue all of it on the stream, at once."""
        _check_capture(self._driver.cuGraphLaunch(self._handle, self._stream), "a captured graph cannot be launched")

    def free(self) -> None:
        """Give back what it holds."""
        if self._handle:
            self._driver.cuGraphExecDestroy(self._handle)
            self._handle = ctypes.c_void_p()


def captured(driver: Any, stream: int, work: Callable[[], None]) -> CudaGraph:  # noqa: ANN401
    """What `work` enqueues on `stream`, captured instead of done.

    Args:
        driver: the driver's library, as `nvidia_driver` gives it.

    Raises:
        DeviceFailed: it cannot be captured.
    """
    where, graph, handle = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    _check_capture(driver.cuStreamBeginCapture_v2(where, THREAD_LOCAL), "a capture cannot begin")
    try:
        work()
    finally:
        # Also after an error: else the stream stays in capture for ever.
        status = driver.cuStreamEndCapture(where, ctypes.byref(graph))
    _check_capture(status, "what was to be captured cannot be")
    try:
        status = driver.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, ctypes.c_ulonglong(0))
        _check_capture(status, "a captured graph cannot be made runnable")
    finally:
        driver.cuGraphDestroy(graph)
    return CudaGraph(driver, handle, stream)


def _check_capture(status: int, what: str) -> None:
    if status:
        raise DeviceFailed(f"CUDA graph: {what} (error {status} of the driver)")
