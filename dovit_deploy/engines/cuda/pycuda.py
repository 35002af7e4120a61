"""Device memory through PyCUDA, for those whose programs use it already (`--cuda-memory pycuda`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import CudaGraph, GpuDevice, captured, gpu_device, nvidia_driver
from dovit_deploy.engines.cuda.memory import DeviceArray, HostArray
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory

Driver = Any
"""The module `pycuda.driver`."""


class PycudaBlock:
    """A piece of device memory."""

    def __init__(self, allocation: Any, nbytes: int, live: dict[int, PycudaBlock]) -> None:  # noqa: ANN401
        self.address, self.nbytes = int(allocation), nbytes
        self._allocation, self._live = allocation, live
        live[self.address] = self

    def free(self) -> None:
        """Give it back; the driver waits for what uses it."""
        if self._live.pop(self.address, None) is not None:
            self._allocation.free()


class PycudaMark:
    """An event with a time."""

    def __init__(self, driver: Driver, stream: Any) -> None:  # noqa: ANN401
        self._driver, self._event = driver, driver.Event()
        self._event.record(stream)

    def wait(self) -> None:
        """Return when what was enqueued before is done."""
        with mapped_errors(self._driver):
            self._event.synchronize()

    def milliseconds_since(self, earlier: PycudaMark) -> float:
        """Time on the device."""
        return float(self._event.time_since(earlier._event))


class PycudaMemory:
    """Memory of one GPU in its primary context, which PyTorch, CuPy and TensorRT use as well."""

    name = "pycuda"

    def __init__(self, driver: Driver, device: GpuDevice, number: int) -> None:
        self.device, self._driver = device, driver
        with mapped_errors(driver):
            driver.init()
            self._context = driver.Device(number).retain_primary_context()
            self._context.push()
            self._stream = driver.Stream()
        self.stream = int(self._stream.handle)
        self._live: dict[int, PycudaBlock] = {}

    def allocate(self, nbytes: int) -> PycudaBlock:
        """Device memory, at least one byte."""
        size = max(1, nbytes)
        with mapped_errors(self._driver, needed=size):
            return PycudaBlock(self._driver.mem_alloc(size), size, self._live)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory."""
        with mapped_errors(self._driver, needed=nbytes):
            memory: npt.NDArray[np.uint8] = self._driver.pagelocked_empty(max(1, nbytes), np.uint8)
            return memory[:nbytes]

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        """Enqueue a copy in, out, or on the device."""
        if target.nbytes != source.nbytes:
            raise ValueError(f"{source.nbytes} bytes into {target.nbytes}")
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
        """Record an event."""
        with mapped_errors(self._driver):
            return PycudaMark(self._driver, self._stream)

    def follow(self, stream: int) -> None:
        """Wait for everything: PyCUDA cannot name a stream that it has not made."""
        del stream
        with mapped_errors(self._driver):
            self._driver.Context.synchronize()

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """A CUDA graph."""
        return captured(nvidia_driver(), self.stream, work)

    def close(self) -> None:
        """Wait, free everything, and leave the primary context to others."""
        if not self.stream:
            return
        with mapped_errors(self._driver):
            self._stream.synchronize()
            for block in list(self._live.values()):
                block.free()
            del self._stream
            self._context.pop()
            self._context.detach()
        self.stream = 0


def opened_memory(number: int) -> PycudaMemory:
    """Entry point of `cuda_memory.opened_memory`."""
    # Without a driver its import fails as if it were broken; the driver's absence is what is to be said.
    device = gpu_device(number)
    return PycudaMemory(packages.load("pycuda.driver"), device, number)


@contextmanager
def mapped_errors(driver: Driver, *, needed: int = 0) -> Iterator[None]:
    """PyCUDA's errors as ours; `needed`: bytes asked for."""
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceOutOfMemory(
            f"out of GPU memory: {needed / 1e6:.1f} MB more are needed; end other programs that use the GPU "
            "(nvidia-smi lists them), or take a smaller model"
        ) from error
    except driver.Error as error:
        raise DeviceFailed(f"the NVIDIA driver refuses: {str(error).splitlines()[0]}") from error
