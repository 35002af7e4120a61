"""Memory of one NVIDIA GPU and one stream of work on it: all that a runtime on a GPU asks of a Python CUDA package.

Two packages can do it, each in a file of its own: NVIDIA's cuda-bindings (`--cuda-memory cuda-core`, the default) and
PyCUDA (`--cuda-memory pycuda`). Tests have a third, which is no GPU.

Whatever is done to memory is enqueued on the one stream and happens in order; nothing waits but `Mark.wait`. A memory
is used by the thread that opened it.
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
from dovit_deploy.errors import UsageError

MEMORIES = {
    "cuda-core": "dovit_deploy.engines.cuda.bindings",
    "pycuda": "dovit_deploy.engines.cuda.pycuda",
}
"""Name on the command line -> the module that defines `opened_memory(number)`."""
DEFAULT_MEMORY = "cuda-core"

HostArray = npt.NDArray[Any]


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array (row-major) in device memory; it may be a part of what `owner` keeps alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    room: int
    """Entries of the first axis that lie at `address`; those behind `shape[0]` are there and not asked for."""
    owner: object = None
    stream: int | None = None
    """Stream on which it was last written, for whoever reads it from another one; None: nothing is pending."""

    @classmethod
    def of(
        cls,
        address: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        owner: object = None,
        stream: int | None = None,
    ) -> DeviceArray:
        """The array at `address` that has room for itself only."""
        return cls(address, shape, np.dtype(dtype), shape[0] if shape else 1, owner, stream)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries asked for."""
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
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


class Block(Protocol):
    """A piece of device memory."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Give it back; what is enqueued and uses it is done first. A second call does nothing."""


class Mark(Protocol):
    """A place in the stream's work (a CUDA event)."""

    def wait(self) -> None:
        """Return when everything that was enqueued before the mark is done.

        Raises:
            DeviceFailed: something of it failed.
        """

    def milliseconds_since(self, earlier: Any) -> float:  # noqa: ANN401  a Mark of the same memory
        """Time on the device between two marks, both waited for."""


class Launch(Protocol):
    """Captured work (a CUDA graph), ready to be enqueued again with the same addresses."""

    def enqueue(self) -> None:
        """Enqueue all of it on the stream, at once."""

    def free(self) -> None:
        """Give back what it holds."""


class DeviceMemory(Protocol):
    """Memory and one stream of one GPU."""

    name: str
    """Key of `MEMORIES`."""
    device: GpuDevice
    stream: int
    """The stream's address (CUstream), for whoever enqueues work of its own."""

    def allocate(self, nbytes: int) -> Block:
        """Device memory, at least one byte, aligned to 256 bytes.

        Raises:
            DeviceOutOfMemory: there is not so much.
        """

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory (nbytes,), from and to which copies do not hold up the host; freed by the last user.

        Raises:
            DeviceOutOfMemory: it cannot be had.
        """

    def copy(self, target: DeviceArray | HostArray, source: DeviceArray | HostArray) -> None:
        """Enqueue a copy in, out, or on the device; both have as many bytes, and host arrays are contiguous.

        A host array must stay as it is, or not be read, until a mark behind the copy was waited for.
        """

    def mark(self) -> Mark:
        """Mark this place in the stream's work."""

    def follow(self, stream: int) -> None:
        """Let what is enqueued from now on start after what is on the other `stream` now."""

    def capture(self, work: Callable[[], None]) -> Launch:
        """What `work` enqueues on the stream, captured instead of done.

        Raises:
            DeviceFailed: it does something that cannot be captured, such as waiting.
        """

    def close(self) -> None:
        """Wait for what is enqueued and free everything."""


def opened_memory(name: str = DEFAULT_MEMORY, *, number: int = 0) -> DeviceMemory:
    """The memory of the GPU called `number` by the driver, through the package `name`.

    Raises:
        UsageError: no such package is known here.
        PackageMissing: it is not installed.
        ProviderMissing: no driver, or no such GPU.
    """
    if name not in MEMORIES:
        raise UsageError(f"--cuda-memory: '{name}' given; there are: {', '.join(MEMORIES)}")
    memory: DeviceMemory = importlib.import_module(MEMORIES[name]).opened_memory(number)
    return memory
