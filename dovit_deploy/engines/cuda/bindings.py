"""Device memory through NVIDIA's own packages: the driver's calls as cuda-bindings has them, beneath cuda-core."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import CudaGraph, GpuDevice, captured, gpu_device, nvidia_driver
from dovit_deploy.engines.cuda.memory import DeviceArray, HostArray
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory, ProviderMissing

Driver = Any
"""The module `cuda.bindings.driver`."""


class CudaCoreBlock:
    """A piece of device memory."""

    def __init__(self, driver: Driver, address: int, nbytes: int, live: dict[int, CudaCoreBlock]) -> None:
        self.address, self.nbytes = address, nbytes
        self._driver, self._live = driver, live
        live[address] = self

    def free(self) -> None:
        """Give it back; the driver waits for what uses it."""
        if self._live.pop(self.address, None) is not None:
            checked(self._driver, self._driver.cuMemFree(self.address))


class CudaCoreMark:
    """An event with a time."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self._driver = driver
        self._event = checked(driver, driver.cuEventCreate(0))
        weakref.finalize(self, driver.cuEventDestroy, self._event)
        checked(driver, driver.cuEventRecord(self._event, stream))

    def wait(self) -> None:
        """Return when what was enqueued before is done."""
        checked(self._driver, self._driver.cuEventSynchronize(self._event))

    def milliseconds_since(self, earlier: CudaCoreMark) -> float:
        """Time on the device."""
        return float(checked(self._driver, self._driver.cuEventElapsedTime(earlier._event, self._event)))


class CudaCoreMemory:
    """Memory of one GPU in its primary context, which PyTorch, CuPy and TensorRT use as well."""

    name = "cuda-core"

    def __init__(self, driver: Driver, device: GpuDevice, number: int) -> None:
        self.device, self._driver = device, driver
        checked(driver, driver.cuInit(0))
        self._device = checked(driver, driver.cuDeviceGet(number))
        checked(driver, driver.cuCtxSetCurrent(checked(driver, driver.cuDevicePrimaryCtxRetain(self._device))))
        self.stream = int(checked(driver, driver.cuStreamCreate(0)))
        self._live: dict[int, CudaCoreBlock] = {}

    def allocate(self, nbytes: int) -> CudaCoreBlock:
        """Device memory, at least one byte."""
        size = max(1, nbytes)
        address = int(checked(self._driver, self._driver.cuMemAlloc(size), needed=size))
        return CudaCoreBlock(self._driver, address, size, self._live)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory."""
        size = max(1, nbytes)
        address = int(checked(self._driver, self._driver.cuMemHostAlloc(size, 0), needed=size))
        memory = (ctypes.c_uint8 * size).from_address(address)
        # Views of the array keep `memory` alive.
        weakref.finalize(memory, self._driver.cuMemFreeHost, address)
        return np.ctypeslib.as_array(memory)[:nbytes]

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        """Enqueue a copy; which way follows from the addresses."""
        if target.nbytes != source.nbytes:
            raise ValueError(f"{source.nbytes} bytes into {target.nbytes}")
        if target.nbytes:
            call, to, of = self._driver.cuMemcpyAsync, address_of(target), address_of(source)
            checked(self._driver, call(to, of, target.nbytes, self.stream))

    def mark(self) -> CudaCoreMark:
        """Record an event."""
        return CudaCoreMark(self._driver, self.stream)

    def follow(self, stream: int) -> None:
        """Wait, on the device, for an event on the other stream."""
        driver = self._driver
        event = checked(driver, driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        checked(driver, driver.cuEventRecord(event, stream))
        checked(driver, driver.cuStreamWaitEvent(self.stream, event, 0))
        checked(driver, driver.cuEventDestroy(event))

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """A CUDA graph."""
        return captured(nvidia_driver(), self.stream, work)

    def close(self) -> None:
        """Wait, free everything, and leave the primary context to others."""
        if not self.stream:
            return
        checked(self._driver, self._driver.cuStreamSynchronize(self.stream))
        for block in list(self._live.values()):
            block.free()
        checked(self._driver, self._driver.cuStreamDestroy(self.stream))
        checked(self._driver, self._driver.cuDevicePrimaryCtxRelease(self._device))
        self.stream = 0


def opened_memory(number: int) -> CudaCoreMemory:
    """Entry point of `cuda_memory.opened_memory`."""
    # Where there is no driver, installing the package would not help.
    device = gpu_device(number)
    try:
        return CudaCoreMemory(packages.load("cuda.bindings.driver"), device, number)
    # What cuda-bindings raises where it finds no driver of its own version's making.
    except RuntimeError as error:
        raise ProviderMissing(f"cuda-bindings cannot use the NVIDIA driver: {str(error).splitlines()[0]}") from error


def address_of(array: DeviceArray | HostArray) -> int:
    """Where an array begins; a host array must be contiguous."""
    if isinstance(array, DeviceArray):
        return array.address
    if not array.flags.c_contiguous:
        raise ValueError("host arrays are copied whole: a contiguous one is needed")
    return int(array.ctypes.data)


def checked(driver: Driver, answer: tuple[Any, ...], *, needed: int = 0) -> Any:  # noqa: ANN401
    """The value of a driver call, of which `answer` is a status and what it gave; `needed`: bytes asked for."""
    status, *values = answer
    if status == driver.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceOutOfMemory(
            f"out of GPU memory: {needed / 1e6:.1f} MB more are needed; end other programs that use the GPU "
            "(nvidia-smi lists them), or take a smaller model"
        )
    raise DeviceFailed(f"the NVIDIA driver answers {status.name}; what ran before on this GPU may be the cause")
