"""Device memory through PyCUDA, for programs that already use it (`--cuda-memory pycuda`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import NON_BLOCKING, CudaGraph, GpuDevice, captured, gpu_device, nvidia_driver
from dovit_deploy.engines.cuda.memory import DeviceArray, HostArray, check_sizes, out_of_memory
from dovit_deploy.errors import DeviceFailed, UsageError

PycudaDriver = Any
"""The module `pycuda.driver`."""


class PycudaAllocation:
    """A piece of device memory."""

    def __init__(
        self,
        driver: PycudaDriver,
        allocation: Any,  # noqa: ANN401
        nbytes: int,
        live: dict[int, PycudaAllocation],
    ) -> None:
        self.address, self.nbytes = int(allocation), nbytes
        self._driver, self._allocation, self._live = driver, allocation, live
        live[self.address] = self

    def free(self) -> None:
        # The driver itself waits for the work that uses it.
        if self._live.pop(self.address, None) is not None:
            with suppress(self._driver.Error):
                self._allocation.free()


class PycudaMark:
    """An event on the stream."""

    def __init__(self, driver: PycudaDriver, stream: Any) -> None:  # noqa: ANN401
        self._driver, self._event = driver, driver.Event()
        self._event.record(stream)

    def wait(self) -> None:
        with mapped_errors(self._driver):
            self._event.synchronize()


class PycudaMemory:
    """Memory of one GPU in its primary context, which PyTorch, CuPy and TensorRT use as well."""

    name = "pycuda"

    def __init__(self, driver: PycudaDriver, device: GpuDevice, number: int) -> None:
        self.device, self._driver = device, driver
        with mapped_errors(driver):
            driver.init()
            self._context = driver.Device(number).retain_primary_context()
            self._context.push()
            self._stream = driver.Stream(NON_BLOCKING)
        self.stream = int(self._stream.handle)
        self._thread = threading.get_ident()
        self._live: dict[int, PycudaAllocation] = {}

    def activate(self) -> None:
        # PyCUDA keeps contexts per thread, and ends the process where a thread ends with one.
        if threading.get_ident() != self._thread:
            raise UsageError(
                "--cuda-memory pycuda: memory is used by the thread that opened it; use --cuda-memory cuda-core"
            )

    def allocate(self, nbytes: int) -> PycudaAllocation:
        # The driver refuses to allocate nothing.
        size = max(1, nbytes)
        with mapped_errors(self._driver, needed=size):
            return PycudaAllocation(self._driver, self._driver.mem_alloc(size), size, self._live)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        with mapped_errors(self._driver, needed=nbytes):
            memory: npt.NDArray[np.uint8] = self._driver.pagelocked_empty(max(1, nbytes), np.uint8)
            return memory[:nbytes]

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        check_sizes(target, source)
        if not target.nbytes:
            return
        driver, stream = self._driver, self._stream
        with mapped_errors(driver):
            if isinstance(target, DeviceArray) and isinstance(source, DeviceArray):
                driver.memcpy_dtod_async(target.address, source.address, target.nbytes, stream)
            elif isinstance(target, DeviceArray):
                driver.memcpy_htod_async(target.address, source, stream)
            else:
                assert isinstance(source, DeviceArray)
                driver.memcpy_dtoh_async(target, source.address, stream)

    def mark(self) -> PycudaMark:
        with mapped_errors(self._driver):
            return PycudaMark(self._driver, self._stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        return captured(nvidia_driver(), self.stream, work)

    def close(self) -> None:
        if not self.stream:
            return
        with suppress(self._driver.Error):
            self._stream.synchronize()
        for allocation in list(self._live.values()):
            allocation.free()
        # Before the context goes: PyCUDA destroys a stream in the context in which it was created.
        del self._stream
        # Detached, not destroyed: the primary context belongs to every user of the GPU in this process.
        for leave in (self._context.pop, self._context.detach):
            with suppress(self._driver.Error):
                leave()
        self.stream = 0


def opened_memory(number: int) -> PycudaMemory:
    """Entry point of `memory.opened_memory`."""
    # First the driver: without it the import of PyCUDA fails as if the package were broken.
    device = gpu_device(number)
    return PycudaMemory(packages.load("pycuda.driver"), device, number)


@contextmanager
def mapped_errors(driver: PycudaDriver, *, needed: int = 0) -> Iterator[None]:
    """PyCUDA's errors as ours; `needed`: bytes requested."""
    try:
        yield
    except driver.MemoryError as error:
        raise out_of_memory(needed) from error
    except driver.Error as error:
        raise DeviceFailed(f"the NVIDIA driver refuses: {str(error).splitlines()[0]}") from error
