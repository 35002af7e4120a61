"""A fake GPU: device memory is separate host memory, and work on its stream is done only when it is waited for.

What is enqueued sees its arguments when it runs, so a host array that is read or changed too early shows. A thread that
did not open it must `activate` it before any work. `log` holds what was enqueued, in order, and `live` the blocks that
were not given back.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np

from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory

ALIGNMENT = 256
MEMORIES: WeakValueDictionary[int, FakeMemory] = WeakValueDictionary()
"""By stream: so a fake TensorRT finds where its work goes."""
NUMBERS = itertools.count(0x5EED)


class FakeAllocation:
    def __init__(self, memory: FakeMemory, nbytes: int) -> None:
        self.nbytes, self._memory = nbytes, memory
        # Never zeros: a read of memory that was not written must show.
        self._storage = np.full(nbytes + ALIGNMENT, 0xA5, np.uint8)
        self.address = -(-self._storage.ctypes.data // ALIGNMENT) * ALIGNMENT
        memory.live[self.address] = self

    def free(self) -> None:
        if self._memory.live.pop(self.address, None) is not None:
            if self._memory.failed:
                self._memory.queue.clear()
            self._memory.run_until(len(self._memory.queue))
            self._storage[:] = 0x5A


@dataclass
class FakeMark:
    memory: FakeMemory
    position: int
    """How many works were enqueued before it, since the memory was opened."""

    def wait(self) -> None:
        self.memory.check_usable()
        assert self.memory.capturing is None, "waiting cannot be captured"
        self.memory.run_until(self.position - self.memory.done)


@dataclass
class FakeLaunch:
    memory: FakeMemory
    works: list[tuple[str, Callable[[], None]]]
    freed: bool = False

    def enqueue(self) -> None:
        assert not self.freed
        if self.memory.launches_left is not None:
            self.memory.launches_left -= 1
            if self.memory.launches_left < 0:
                raise DeviceOutOfMemory("CUDA graph: a captured graph cannot be launched, the GPU is out of memory")
        works = self.works
        self.memory.enqueue("launch", lambda: [work() for _, work in works])

    def free(self) -> None:
        self.freed = True
        self.memory.launches.discard(id(self))


@dataclass(eq=False)
class FakeMemory:
    """`limit`: bytes in all. `refuse_capture`: as a driver does where captured work waits. `failed`: nothing works any
    more, as after an illegal address. `launches_left`: until the GPU is out of memory."""

    name: str = "fake"
    device: GpuDevice = field(default_factory=lambda: GpuDevice("fake GPU", "8.6"))
    stream: int = field(default_factory=lambda: next(NUMBERS))
    limit: int = 1 << 28
    refuse_capture: bool = False
    failed: bool = False
    launches_left: int | None = None
    threads: set[int] = field(default_factory=lambda: {threading.get_ident()})
    live: dict[int, FakeAllocation] = field(default_factory=dict)
    launches: set[int] = field(default_factory=set)
    queue: list[Callable[[], None]] = field(default_factory=list)
    capturing: list[tuple[str, Callable[[], None]]] | None = None
    log: list[str] = field(default_factory=list)
    done: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        MEMORIES[self.stream] = self

    def activate(self) -> None:
        self.threads.add(threading.get_ident())

    def check_usable(self) -> None:
        assert threading.get_ident() in self.threads, "no CUDA context in this thread"
        if self.failed:
            raise DeviceFailed("the NVIDIA driver reports CUDA_ERROR_ILLEGAL_ADDRESS")

    def allocate(self, nbytes: int) -> FakeAllocation:
        self.check_usable()
        assert self.capturing is None, "allocation cannot be captured"
        if sum(block.nbytes for block in self.live.values()) + nbytes > self.limit:
            raise DeviceOutOfMemory(f"out of GPU memory: {nbytes / 1e6:.1f} MB more are needed")
        self.log.append("allocate")
        return FakeAllocation(self, max(1, nbytes))

    def pinned(self, nbytes: int):
        return np.full(nbytes, 0xA5, np.uint8)

    def copy(self, target, source) -> None:
        if target.nbytes != source.nbytes:
            raise ValueError(f"{source.nbytes} bytes into {target.nbytes}")
        addresses = [address_of(array) for array in (target, source)]
        kinds = ["host" if isinstance(array, np.ndarray) else "device" for array in (source, target)]

        # Until it has run, `work` keeps both arrays alive, as pinned memory would have to be kept.
        def work() -> None:
            self.check(target)
            self.check(source)
            ctypes.memmove(addresses[0], addresses[1], target.nbytes)

        self.enqueue(f"copy {kinds[0]} to {kinds[1]}", work)

    def mark(self) -> FakeMark:
        self.check_usable()
        return FakeMark(self, self.done + len(self.queue))

    def capture(self, work: Callable[[], None]) -> FakeLaunch:
        self.check_usable()
        if self.refuse_capture:
            raise DeviceFailed("CUDA graph: what was to be captured cannot be (error 901 of the driver)")
        self.capturing = []
        try:
            work()
            launch = FakeLaunch(self, self.capturing)
        finally:
            self.capturing = None
        self.log.append("capture")
        self.launches.add(id(launch))
        return launch

    def close(self) -> None:
        if self.failed:
            self.queue.clear()
        self.run_until(len(self.queue))
        for block in list(self.live.values()):
            block.free()
        self.closed = True

    def enqueue(self, name: str, work: Callable[[], None]) -> None:
        """Like a kernel launch: `work` runs when it is waited for."""
        self.check_usable()
        assert not self.closed
        if self.capturing is not None:
            self.capturing.append((name, work))
            return
        self.log.append(name)
        self.queue.append(work)

    def run_until(self, count: int) -> None:
        for _ in range(max(0, count)):
            self.queue.pop(0)()
            self.done += 1

    def check(self, array) -> None:
        """A device array lies inside memory that is allocated."""
        if isinstance(array, np.ndarray):
            return
        inside = any(
            block.address <= array.address and array.address + array.nbytes <= block.address + block.nbytes
            for block in self.live.values()
        )
        assert inside or not array.nbytes, f"{array} is outside of all memory"


def address_of(array) -> int:
    if isinstance(array, DeviceArray):
        return array.address
    assert array.flags.c_contiguous
    return array.ctypes.data


def view(array: DeviceArray) -> np.ndarray:
    """The fake's device memory as an array, for work that a test enqueues."""
    data = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
    return np.frombuffer(data, array.dtype).reshape(array.shape)
