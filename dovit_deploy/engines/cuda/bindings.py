"""Device memory through NVIDIA's own packages: the driver's calls in cuda-bindings, which cuda-core builds on."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import NON_BLOCKING, CudaGraph, GpuDevice, captured, gpu_device, nvidia_driver
from dovit_deploy.engines.cuda.memory import DeviceArray, HostArray, check_sizes, out_of_memory
from dovit_deploy.errors import DeviceFailed, ProviderMissing

BindingsDriver = Any
"""The module `cuda.bindings.driver`."""


class CudaCoreAllocation:
    """A piece of device memory."""

    def __init__(self, driver: BindingsDriver, address: int, nbytes: int, live: dict[int, CudaCoreAllocation]) -> None:
        self.address, self.nbytes = address, nbytes
        self._driver, self._live = driver, live
        live[address] = self

    def free(self) -> None:
        # The driver itself waits for the work that uses it. Unchecked, see `DeviceMemory.close`.
        if self._live.pop(self.address, None) is not None:
            self._driver.cuMemFree(self.address)


class CudaCoreMark:
    """An event on the stream."""

    def __init__(self, driver: BindingsDriver, stream: int) -> None:
        self._driver = driver
        self._event = checked(driver, driver.cuEventCreate(0))
        # A mark has no `free`: the event goes with its last reference, when a later run makes the next one.
        weakref.finalize(self, driver.cuEventDestroy, self._event)
        checked(driver, driver.cuEventRecord(self._event, stream))

    def wait(self) -> None:
        checked(self._driver, self._driver.cuEventSynchronize(self._event))


class CudaCoreMemory:
    """Memory of one GPU in its primary context, which PyTorch, CuPy and TensorRT use as well."""

    name = "cuda-core"

    def __init__(self, driver: BindingsDriver, device: GpuDevice, number: int) -> None:
        self.device, self._driver = device, driver
        checked(driver, driver.cuInit(0))
        self._device = checked(driver, driver.cuDeviceGet(number))
        self._context = checked(driver, driver.cuDevicePrimaryCtxRetain(self._device))
        self.activate()
        self.stream = int(checked(driver, driver.cuStreamCreate(NON_BLOCKING)))
        self._live: dict[int, CudaCoreAllocation] = {}

    def activate(self) -> None:
        checked(self._driver, self._driver.cuCtxSetCurrent(self._context))

    def allocate(self, nbytes: int) -> CudaCoreAllocation:
        # The driver refuses to allocate nothing.
        size = max(1, nbytes)
        address = int(checked(self._driver, self._driver.cuMemAlloc(size), needed=size))
        return CudaCoreAllocation(self._driver, address, size, self._live)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        size = max(1, nbytes)
        address = int(checked(self._driver, self._driver.cuMemHostAlloc(size, 0), needed=size))
        memory = (ctypes.c_uint8 * size).from_address(address)
        # Views of the array keep `memory` alive.
        weakref.finalize(memory, self._driver.cuMemFreeHost, address)
        # Cut to `nbytes`, which may be 0, although at least one byte was allocated.
        return np.ctypeslib.as_array(memory)[:nbytes]

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        check_sizes(target, source)
        if target.nbytes:
            # The driver derives the direction from the addresses.
            call, to, of = self._driver.cuMemcpyAsync, address_of(target), address_of(source)
            checked(self._driver, call(to, of, target.nbytes, self.stream))

    def mark(self) -> CudaCoreMark:
        return CudaCoreMark(self._driver, self.stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        return captured(nvidia_driver(), self.stream, work)

    def close(self) -> None:
        if not self.stream:
            return
        driver, stream, self.stream = self._driver, self.stream, 0
        # Whichever thread closes.
        driver.cuCtxSetCurrent(self._context)
        driver.cuStreamSynchronize(stream)
        for allocation in list(self._live.values()):
            allocation.free()
        driver.cuStreamDestroy(stream)
        # Released, not destroyed: the primary context belongs to every user of the GPU in this process.
        driver.cuDevicePrimaryCtxRelease(self._device)


def opened_memory(number: int) -> CudaCoreMemory:
    """Entry point of `memory.opened_memory`."""
    # First the driver: without it, installing the package would not help.
    device = gpu_device(number)
    try:
        return CudaCoreMemory(packages.load("cuda.bindings.driver"), device, number)
    # cuda-bindings raises this where the driver is too old for its version.
    except RuntimeError as error:
        raise ProviderMissing(f"cuda-bindings cannot use the NVIDIA driver: {str(error).splitlines()[0]}") from error


def address_of(array: DeviceArray | HostArray) -> int:
    """Address of the first entry; a host array must be contiguous."""
    if isinstance(array, DeviceArray):
        return array.address
    if not array.flags.c_contiguous:
        raise ValueError("host arrays are copied whole: a contiguous one is needed")
    return int(array.ctypes.data)


def checked(driver: BindingsDriver, answer: tuple[Any, ...], *, needed: int = 0) -> Any:  # noqa: ANN401
    """The value of a driver call that returned `answer`, a status and perhaps a value; `needed`: bytes requested."""
    status, *values = answer
    if status == driver.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise out_of_memory(needed)
    raise DeviceFailed(f"the NVIDIA driver reports {status.name}; earlier work on this GPU may be the cause")
