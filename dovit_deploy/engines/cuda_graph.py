"""Work captured as a CUDA graph, by the driver's own calls: the stream of any package will do.

PyCUDA has no graphs of its own, and those of cuda-core change their names from version to version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from dovit_deploy.errors import DeviceFailed

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is no concern of the capture."""


class CudaGraph:
    """An instantiated graph that runs on the stream on which it was captured."""

    def __init__(self, driver: Any, handle: ctypes.c_void_p, stream: int) -> None:  # noqa: ANN401  a ctypes.CDLL
        self._driver, self._handle, self._stream = driver, handle, ctypes.c_void_p(stream)

    def enqueue(self) -> None:
        """Enqueue all of it on the stream, at once."""
        _check(self._driver.cuGraphLaunch(self._handle, self._stream), "a captured graph cannot be launched")

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
    _check(driver.cuStreamBeginCapture_v2(where, THREAD_LOCAL), "a capture cannot begin")
    try:
        work()
    finally:
        # Also after an error: else the stream stays in capture for ever.
        status = driver.cuStreamEndCapture(where, ctypes.byref(graph))
    _check(status, "what was to be captured cannot be")
    try:
        status = driver.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, ctypes.c_ulonglong(0))
        _check(status, "a captured graph cannot be made runnable")
    finally:
        driver.cuGraphDestroy(graph)
    return CudaGraph(driver, handle, stream)


def _check(status: int, what: str) -> None:
    if status:
        raise DeviceFailed(f"CUDA graph: {what} (error {status} of the driver)")
