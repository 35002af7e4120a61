"""What every device memory must do, one function a promise; the fake and both real packages keep it.

`python -m tests.engines.cuda.memory_contract NAME` runs all of them on a real package, in a process of its own: there
the driver may be tests/csrc/host_driver.c, which does its work on the CPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from dovit_deploy.engines.cuda.memory import DeviceArray, DeviceMemory, opened_memory
from dovit_deploy.errors import DeviceOutOfMemory, UsageError


@contextmanager
def refused(kind: type[Exception], match: str) -> Iterator[None]:
    """As `pytest.raises`, which is not everywhere where there is a GPU."""
    try:
        yield
    except kind as error:
        assert re.search(match, str(error)), error
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


def device_array(memory: DeviceMemory, shape: tuple[int, ...], dtype) -> DeviceArray:
    allocation = memory.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return DeviceArray.of(allocation.address, shape, dtype)


def pinned_array(memory: DeviceMemory, values: np.ndarray) -> np.ndarray:
    host = memory.pinned(values.nbytes).view(values.dtype).reshape(values.shape)
    host[...] = values
    return host


def downloaded(memory: DeviceMemory, array: DeviceArray) -> np.ndarray:
    host = memory.pinned(array.nbytes).view(array.dtype).reshape(array.shape)
    memory.copy(host, array)
    memory.mark().wait()
    return host.copy()


def what_goes_in_comes_out(memory: DeviceMemory) -> None:
    draw = np.random.default_rng(0)
    for shape, dtype in (((3, 5), np.float32), ((7,), np.int64), ((), np.float16), ((2, 3), np.uint8)):
        values = (100 * draw.random(shape)).astype(dtype)
        array = device_array(memory, shape, dtype)
        memory.copy(array, pinned_array(memory, np.asarray(values)))
        assert np.array_equal(downloaded(memory, array), values)


def memory_that_is_not_pinned_is_taken_too(memory: DeviceMemory) -> None:
    values = np.arange(12, dtype=np.int64)
    array = device_array(memory, (12,), np.int64)
    memory.copy(array, values)
    out = np.zeros(12, np.int64)
    memory.copy(out, array)
    memory.mark().wait()
    assert np.array_equal(out, values)


def a_narrowed_array_is_the_front(memory: DeviceMemory) -> None:
    values = np.arange(20, dtype=np.int64).reshape(10, 2)
    array = device_array(memory, (10, 2), np.int64)
    memory.copy(array, values)
    front = array.narrow(4)
    assert front.address == array.address and front.shape == (4, 2) and front.room == 10
    assert np.array_equal(downloaded(memory, front), values[:4])
    assert np.array_equal(downloaded(memory, front.narrow(7)), values[:7]), "what lies behind is still there"
    assert np.array_equal(downloaded(memory, array.narrow(0)), values[:0])


def device_to_device(memory: DeviceMemory) -> None:
    one, other = device_array(memory, (6,), np.float32), device_array(memory, (6,), np.float32)
    memory.copy(one, np.arange(6, dtype=np.float32))
    memory.copy(other, one)
    memory.copy(one, np.zeros(6, np.float32))
    assert np.array_equal(downloaded(memory, other), np.arange(6)), "work is done in the order of the calls"


def sizes_must_agree(memory: DeviceMemory) -> None:
    array = device_array(memory, (6,), np.float32)
    with refused(ValueError, match="20 bytes into 24"):
        memory.copy(array, np.zeros(5, np.float32))
    with refused(ValueError, match="24 bytes into 20"):
        memory.copy(np.zeros(5, np.float32), array)


def addresses_are_aligned_and_apart(memory: DeviceMemory) -> None:
    blocks = [memory.allocate(nbytes) for nbytes in (0, 1, 300, 5)]
    assert all(block.address % 256 == 0 for block in blocks)
    assert len({block.address for block in blocks}) == 4
    for block in (*blocks, *blocks):
        block.free()


def marks_can_be_waited_for_in_any_order(memory: DeviceMemory) -> None:
    array = device_array(memory, (6,), np.float32)
    before = memory.mark()
    memory.copy(array, np.zeros(6, np.float32))
    after = memory.mark()
    after.wait()
    before.wait()
    after.wait()


def captured_work_is_done_when_launched(memory: DeviceMemory) -> None:
    one, other = device_array(memory, (3,), np.int64), device_array(memory, (3,), np.int64)
    memory.copy(one, np.asarray([1, 2, 3]))
    memory.copy(other, np.zeros(3, np.int64))
    memory.mark().wait()
    launch = memory.capture(lambda: memory.copy(other, one))
    assert np.array_equal(downloaded(memory, other), [0, 0, 0]), "captured work is not done yet"
    launch.enqueue()
    assert np.array_equal(downloaded(memory, other), [1, 2, 3])
    memory.copy(one, np.asarray([4, 5, 6]))
    launch.enqueue()
    assert np.array_equal(downloaded(memory, other), [4, 5, 6]), "the same addresses, what they hold now"
    launch.free()


def a_failed_capture_leaves_the_stream_usable(memory: DeviceMemory) -> None:
    def work() -> None:
        raise KeyError("a bug in what is captured")

    with refused(KeyError, match="a bug"):
        memory.capture(work)
    what_goes_in_comes_out(memory)


def too_much_is_refused(memory: DeviceMemory) -> None:
    with refused(DeviceOutOfMemory, match=r"out of GPU memory: .* MB more are needed"):
        memory.allocate(1 << 50)
    what_goes_in_comes_out(memory)


def an_array_shows_itself_to_other_packages(memory: DeviceMemory) -> None:
    array = device_array(memory, (4, 3), np.float16)
    shown = array.narrow(2).__cuda_array_interface__
    assert (shown["shape"], shown["typestr"], shown["data"]) == ((2, 3), "<f2", (array.address, False))


def another_thread_activates_it_first(memory: DeviceMemory) -> None:
    """PyCUDA keeps contexts per thread, and says so."""
    array = device_array(memory, (3,), np.int64)

    def work() -> np.ndarray:
        memory.activate()
        memory.copy(array, np.asarray([1, 2, 3]))
        return downloaded(memory, array)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        if memory.name == "pycuda":
            with refused(UsageError, "use --cuda-memory cuda-core"):
                done.result()
        else:
            assert np.array_equal(done.result(), [1, 2, 3])
    memory.activate()
    what_goes_in_comes_out(memory)


def a_device_is_named(memory: DeviceMemory) -> None:
    assert memory.device.name and float(memory.device.compute_capability) >= 5.0
    assert memory.stream


CHECKS = (
    what_goes_in_comes_out,
    memory_that_is_not_pinned_is_taken_too,
    a_narrowed_array_is_the_front,
    device_to_device,
    sizes_must_agree,
    addresses_are_aligned_and_apart,
    marks_can_be_waited_for_in_any_order,
    captured_work_is_done_when_launched,
    a_failed_capture_leaves_the_stream_usable,
    too_much_is_refused,
    an_array_shows_itself_to_other_packages,
    another_thread_activates_it_first,
    a_device_is_named,
)


def main(name: str) -> None:
    for check in CHECKS:
        memory = opened_memory(name)
        check(memory)
        memory.close()
        memory.close()
    print(f"{len(CHECKS)} promises kept by {name} on {memory.device.name}")


if __name__ == "__main__":
    main(sys.argv[1])
