"""Memory of one NVIDIA GPU and one stream of work on it: everything that a runtime needs of a Python CUDA package.

Two packages provide it, each behind a file of its own: NVIDIA's cuda-bindings (`--cuda-memory cuda-core`, the default)
and PyCUDA (`--cuda-memory pycuda`). The tests have a third one that needs no GPU.

All work on memory is enqueued on the one stream and happens in order; only `Mark.wait` blocks the host. One thread at a
time uses a memory; a thread that did not open it calls `activate` first.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.errors import DeviceOutOfMemory, UsageError

MEMORIES = {
    "cuda-core": "dovit_deploy.engines.cuda.bindings",
    "pycuda": "dovit_deploy.engines.cuda.pycuda",
}
"""Name on the command line -> the module that defines `opened_memory(number)`."""
DEFAULT_MEMORY = "cuda-core"

HostArray = npt.NDArray[Any]


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous (row-major) array in device memory, which the `DeviceMemory` that allocated it keeps alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    room: int
    """Entries of the first axis that are stored at `address`; those beyond `shape[0]` exist but are not part of it."""
    stream: int | None = None
    """Stream on which it was last written, for readers on another stream; None: no write is pending."""

    @classmethod
    def of(
        cls, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike, *, stream: int | None = None
    ) -> DeviceArray:
        """The array at `address`, with room for exactly its own entries."""
        return cls(address, shape, np.dtype(dtype), shape[0] if shape else 1, stream)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries within `shape`."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def narrow(self, count: int) -> DeviceArray:
        """The first `count` entries of the first axis, up to `room`, without a copy."""
        if not 0 <= count <= self.room:
            raise ValueError(f"{count} of {self.room} entries")
        return replace(self, shape=(count, *self.shape[1:]))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How PyTorch, CuPy, Numba and PyCUDA read this array without a copy (CUDA array interface, version 3)."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            # False: it may be written. No strides: it is row-major.
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


class Allocation(Protocol):
    """A piece of device memory."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Release it after the enqueued work that uses it is done. A second call does nothing.

        Raises nothing, like `DeviceMemory.close`.
        """


class Mark(Protocol):
    """A point in the stream's work (a CUDA event)."""

    def wait(self) -> None:
        """Return when everything that was enqueued before the mark is done.

        Raises:
            DeviceFailed: some of that work failed.
        """


class Launch(Protocol):
    """Captured work (a CUDA graph), ready to be enqueued again with the same addresses."""

    def enqueue(self) -> None:
        """Enqueue all of it on the stream in one call."""

    def free(self) -> None:
        """Release what it holds."""


class DeviceMemory(Protocol):
    """Memory and one stream of one GPU."""

    name: str
    """Key of `MEMORIES`."""
    device: GpuDevice
    stream: int
    """The stream's address (CUstream), for callers that enqueue work of their own."""

    def activate(self) -> None:
        """Let the calling thread use this memory, and whatever runs on its stream: contexts belong to threads.

        Raises:
            UsageError: the package serves only the thread that opened the memory.
        """

    def allocate(self, nbytes: int) -> Allocation:
        """Device memory, at least one byte, aligned to 256 bytes.

        Raises:
            DeviceOutOfMemory: less than that is free.
        """

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory (nbytes,), which copies do not make the host wait for; freed with its last view.

        Raises:
            DeviceOutOfMemory: it cannot be allocated.
        """

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        """Enqueue a copy to, from, or on the device; both have the same number of bytes, host arrays are contiguous.

        A host array must not be changed (as a source) or read (as a target) until a mark after the copy was waited for.
        """

    def mark(self) -> Mark:
        """Mark this point in the stream's work."""

    def capture(self, work: Callable[[], None]) -> Launch:
        """What `work` enqueues on the stream, captured instead of executed.

        Raises:
            DeviceFailed: it does something that cannot be captured, such as waiting.
        """

    def close(self) -> None:
        """Wait for all enqueued work and free everything.

        Raises nothing: after an error from which a GPU does not recover (an illegal address) every call repeats it, and
        whoever waited for the work knows of it already.
        """


def opened_memory(name: str = DEFAULT_MEMORY, *, number: int = 0) -> DeviceMemory:
    """The memory of the driver's GPU `number`, through the package `name`.

    Raises:
        UsageError: see `check_memory_name`.
        PackageMissing: it is not installed.
        ProviderMissing: no driver, or no such GPU.
    """
    check_memory_name(name)
    # Imported only now, because each of them imports an optional package.
    memory: DeviceMemory = importlib.import_module(MEMORIES[name]).opened_memory(number)
    return memory


def check_memory_name(name: str) -> None:
    """Raise UsageError unless `name` is one of `MEMORIES`."""
    if name not in MEMORIES:
        raise UsageError(f"--cuda-memory: '{name}' given; there are: {', '.join(MEMORIES)}")


def check_sizes(target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
    """Raise ValueError unless both sides of a copy have the same number of bytes."""
    if target.nbytes != source.nbytes:
        raise ValueError(f"{source.nbytes} bytes into {target.nbytes}")


def out_of_memory(nbytes: int) -> DeviceOutOfMemory:
    """The error for `nbytes` bytes that could not be allocated."""
    return DeviceOutOfMemory(
        f"out of GPU memory: {nbytes / 1e6:.1f} MB more are needed; end other programs that use the GPU "
        "(nvidia-smi lists them), or take a smaller model"
    )
