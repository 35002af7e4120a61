"""One engine with its buffers: takes arrays, runs in the smallest bucket that holds them, returns device memory.

A bucket is one of the few token counts that an engine really runs; every other count is rounded up to the next bucket,
and what was added is masked in the graph (graphs/padding.py), so that the result is that of the count itself. Each
bucket has tuned kernels, an execution context and CUDA graphs of its own.

A CUDA graph holds the addresses with which it was captured. So outputs stay at the same address from run to run, and
so do inputs that come from the host, each in a slot of its own: few graphs are needed, one for ordinary runs and one
for replays, whose index comes from the host.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovit_deploy.bundle.interface import COUNT, INDEX, ORDER, TOKENS
from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.engines.cuda.memory import Allocation, DeviceArray, DeviceMemory, Launch, Mark
from dovit_deploy.engines.tensorrt.context import TensorRtContext, TensorRtEngine
from dovit_deploy.engines.tensorrt.record import EngineRecord, TensorRecord
from dovit_deploy.errors import DeviceFailed, InputError
from dovit_deploy.graphs.padding import VALID

STEPS = 16
"""Buckets of a profile that spans a range: at most a sixteenth of its largest count is computed for nothing."""
MOST_GRAPHS = 4
"""CUDA graphs of one bucket. Callers whose own buffers move would capture ever more; beyond this, kernels are enqueued
one by one."""
SMALL = 4096
"""Bytes. A smaller host input is compared with its last value, and copied to the device only if it changed."""


@dataclass(frozen=True)
class Bucket:
    """A token count, and the number of the optimisation profile that runs it."""

    size: int
    profile: int


ONLY = (Bucket(0, 0),)
"""The buckets of a graph of one size."""


@dataclass
class GateCount:
    """What a gate decided, on the device, and how many tokens it lets on as the host has read it."""

    order: DeviceArray
    count: DeviceArray
    read: int | None = None
    """None until the host has read `count`."""

    def decided(self, index: Buffer) -> bool:
        """Whether `index` is as much of `order` as `count` says: a caller may take less, or an index of its own."""
        return isinstance(index, DeviceArray) and index.address == self.order.address and len(index) == self.read


@dataclass
class _Slot:
    """Buffers of an input that comes from the host."""

    device: DeviceArray
    pinned: Array
    filled: bool = False
    """Whether both hold the same values, of the full size."""


class TensorRtStage:
    """The engine of one graph.

    Args:
        record: its sidecar.
        memory: of the GPU on which it runs.
        closed: called once when everything has been freed.
    """

    def __init__(
        self, engine: TensorRtEngine, record: EngineRecord, memory: DeviceMemory, *, closed: Callable[[], None]
    ) -> None:
        self._engine, self._record, self._memory, self._closed = engine, record, memory, closed
        self.buckets = buckets_from_profiles(record.profiles)
        self._contexts: dict[Bucket, BucketContext] = {}
        self._slots: dict[str, _Slot] = {}
        self._allocations: list[Allocation] = []
        self._rooms: dict[str, _Room] = {}
        self._scratch: Allocation | None = None
        self._staged: Mark | None = None
        self._slots_written = False
        self._before: GateCount | None = None
        self.gate: GateCount | None = None
        """What the gate at the end of this stage decided in its last run; None before the first, and without a gate."""
        self.outputs: dict[str, DeviceArray] = {}
        """The outputs of the last run, by name."""

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Enqueue the graph; the outputs are device arrays that are written when the stream reaches it.

        Raises:
            InputError: an input of another shape or type, or more tokens than the engine was built for.
            DeviceFailed: TensorRT refuses.
        """
        # Perhaps this is another thread than the one that loaded the engine.
        self._memory.activate()
        given, bucket = dict(inputs), self.buckets[0]
        if INDEX in given:
            count = len(given[INDEX])
            bucket = bucket_for_count(self.buckets, count, graph=self._record.graph)
            given[VALID] = self._valid(given[INDEX])
            given[INDEX] = self._padded(given[INDEX], bucket.size)
        addresses = tuple(self._address(tensor, given[tensor.name]) for tensor in self._record.inputs)
        if self._slots_written:
            # Behind the copies to the slots: pinned memory may be written again when this mark is reached.
            self._staged, self._slots_written = self._memory.mark(), False
        if self.gate is not None:
            self.gate.read = None
        self._context(bucket).enqueue(addresses)
        return {tensor.name: self.outputs[tensor.name] for tensor in self._record.outputs}

    def warm_up(self, sources: Mapping[str, DeviceArray], before: GateCount | None = None) -> None:
        """Run every bucket once, so that nothing is allocated, compiled or captured while frames wait.

        Args:
            sources: inputs that will come from other engines, at their future addresses. Their values are overwritten.
            before: of the stage that comes before: its count is read where it is, on the device.

        Raises:
            DeviceFailed: see `run`; or the work itself failed.
        """
        takes = {tensor.name: tensor for tensor in self._record.inputs if tensor.name != VALID}
        self._before = before
        # The largest first, so that memory that grows does so once.
        for bucket in reversed(self.buckets):
            inputs: dict[str, Buffer] = {
                name: np.zeros(_fixed(tensor.shape, bucket.size), tensor.dtype) for name, tensor in takes.items()
            }
            inputs.update(sources)
            if INDEX in inputs:
                # The memory may hold anything, but positions must be within the tokens.
                order = np.arange(takes[TOKENS].shape[0])
                inputs[INDEX] = order[: bucket.size]
                if INDEX in sources:
                    self._memory.copy(sources[INDEX], order)
                    inputs[INDEX] = sources[INDEX].narrow(bucket.size)
            if before is not None:
                self._memory.copy(before.count, np.asarray(bucket.size, before.count.dtype))
                before.read = bucket.size
            self.run(inputs)
            self._memory.mark().wait()
        if before is not None:
            before.read = None

    @property
    def graphs(self) -> int:
        """Number of CUDA graphs captured so far, over all buckets."""
        return sum(context.graphs for context in self._contexts.values())

    def close(self) -> None:
        """Wait for enqueued work, and free everything; also where that work failed, see `DeviceMemory.close`."""
        if self._engine is None:
            return
        # In the order of use: work, contexts with their graphs, the engine, and last the memory that they address.
        with contextlib.suppress(DeviceFailed):
            self._memory.activate()
            self._memory.mark().wait()
        for context in self._contexts.values():
            context.free()
        self._contexts.clear()
        self._engine.close()
        rooms = (room.allocation for room in self._rooms.values() if room.allocation is not None)
        for allocation in (*self._allocations, *rooms):
            allocation.free()
        self._slots.clear()
        self.outputs.clear()
        self._engine = None  # type: ignore[assignment]
        self._closed()

    def _context(self, bucket: Bucket) -> BucketContext:
        """The context of a bucket, created when it is first needed."""
        found = self._contexts.get(bucket)
        if found is not None:
            return found
        context = self._engine.context(bucket.profile, self._memory.stream)
        for tensor in self._record.inputs:
            if -1 in tensor.shape:
                context.set_shape(tensor.name, _fixed(tensor.shape, bucket.size))
        self._give_scratch(context)
        for tensor in self._record.outputs:
            if -1 in tensor.shape:
                self._rooms.setdefault(tensor.name, _Room(tensor, self._memory, self.outputs)).attach(context)
        # Where an output's size depends on the data, TensorRT waits within a run, which cannot be captured.
        inputs = tuple(tensor.name for tensor in self._record.inputs)
        outputs = {name: array.address for name, array in self._fixed_outputs().items()}
        self._contexts[bucket] = BucketContext(context, self._memory, inputs, outputs, capture=not self._rooms)
        return self._contexts[bucket]

    def _give_scratch(self, context: TensorRtContext) -> None:
        """All contexts share one allocation, as large as the largest profile needs: they run one at a time."""
        if self._scratch is None:
            profiles = range(max(1, len(self._record.profiles)))
            self._scratch = self._memory.allocate(max(map(self._engine.scratch_bytes, profiles)))
            self._allocations.append(self._scratch)
        context.give_scratch(self._scratch.address, self._scratch.nbytes)

    def _fixed_outputs(self) -> dict[str, DeviceArray]:
        """The outputs of known size, allocated once."""
        for tensor in self._record.outputs:
            if -1 not in tensor.shape and tensor.name not in self.outputs:
                self.outputs[tensor.name] = self._allocated(tensor, tensor.shape)
        if self.gate is None and {ORDER, COUNT} <= self.outputs.keys():
            self.gate = GateCount(self.outputs[ORDER], self.outputs[COUNT])
        return {tensor.name: self.outputs[tensor.name] for tensor in self._record.outputs if -1 not in tensor.shape}

    def _allocated(self, tensor: TensorRecord, shape: tuple[int, ...]) -> DeviceArray:
        dtype = np.dtype(tensor.dtype)
        allocation = self._memory.allocate(math.prod(shape) * dtype.itemsize)
        self._allocations.append(allocation)
        return DeviceArray.of(allocation.address, shape, dtype, stream=self._memory.stream)

    def _address(self, tensor: TensorRecord, value: Buffer) -> int:
        """Where the engine reads `value`: its own address on the device, or that of the slot it is copied to now."""
        shape = tuple(value.shape)
        if shape != _fixed(tensor.shape, shape[0] if shape else 0):
            raise InputError(f"{self._record.graph}: {tensor.name} of shape {shape} given, {tensor.shape} needed")
        if isinstance(value, DeviceArray):
            if value.dtype != np.dtype(tensor.dtype):
                raise InputError(f"{self._record.graph}: {tensor.name}: {value.dtype} given, {tensor.dtype} needed")
            return value.address
        # Thresholds rarely change from frame to frame; comparing them costs less than a copy and a wait.
        slot = self._slot(tensor)
        pinned = slot.pinned[: shape[0]] if -1 in tensor.shape else slot.pinned
        if slot.filled and pinned.nbytes <= SMALL and np.array_equal(pinned, value):
            return slot.device.address
        if self._staged is not None:
            # The last copy may not have left the pinned memory yet.
            self._staged.wait()
        self._slots_written = True
        np.copyto(pinned, value, casting="same_kind")
        self._memory.copy(slot.device.narrow(shape[0]) if -1 in tensor.shape else slot.device, pinned)
        # An index of another length would leave the rest of the slot as it was: it is always copied.
        slot.filled = -1 not in tensor.shape
        return slot.device.address

    def _slot(self, tensor: TensorRecord) -> _Slot:
        """The slot of an input, as large as it can ever be."""
        if tensor.name not in self._slots:
            device = self._allocated(tensor, _fixed(tensor.shape, self.buckets[-1].size))
            pinned = self._memory.pinned(device.nbytes).view(device.dtype).reshape(device.shape)
            self._slots[tensor.name] = _Slot(device, pinned)
        return self._slots[tensor.name]

    def _valid(self, index: Buffer) -> Buffer:
        """Of the padded graph: how many entries of `index` count; a gate's own count where it decided as many."""
        if self._before is not None and self._before.decided(index):
            return self._before.count
        return np.asarray(len(index), np.int64)

    def _padded(self, index: Buffer, size: int) -> Buffer:
        """`index` extended to the bucket's size: by what follows it in device memory, else by other positions."""
        if isinstance(index, DeviceArray):
            # Behind the running tokens, `order` continues with those that stopped: valid positions, and no copy.
            if index.room >= size:
                return index.narrow(size)
            host = self._memory.pinned(index.nbytes).view(index.dtype).reshape(index.shape)
            self._memory.copy(host, index)
            self._memory.mark().wait()
            index = host
        total = next(tensor.shape[0] for tensor in self._record.inputs if tensor.name == TOKENS)
        others = np.setdiff1d(np.arange(total), index)
        return np.concatenate([index, others[: size - len(index)]])


class BucketContext:
    """An execution context whose shapes are fixed: run once kernel by kernel, from then on as one CUDA graph.

    Args:
        inputs: the names of all inputs, in the order of the addresses that `enqueue` takes.
        outputs: the addresses of every output of known size, by name; they never change.
    """

    def __init__(
        self,
        context: TensorRtContext,
        memory: DeviceMemory,
        inputs: tuple[str, ...],
        outputs: Mapping[str, int],
        *,
        capture: bool,
    ) -> None:
        self._context, self._memory, self._inputs, self._capture = context, memory, inputs, capture
        for name, address in outputs.items():
            context.bind(name, address)
        self._launches: dict[tuple[int, ...], Launch | None] = {}

    @property
    def graphs(self) -> int:
        """Number of CUDA graphs captured so far, at most `MOST_GRAPHS`."""
        return sum(launch is not None for launch in self._launches.values())

    def enqueue(self, addresses: tuple[int, ...]) -> None:
        """Enqueue one run that reads its inputs at `addresses`, on the memory's stream.

        Raises:
            DeviceFailed: TensorRT refuses.
        """
        # A graph replays these very addresses, so each set of them needs its own.
        launch = self._launches.get(addresses)
        if launch is not None:
            launch.enqueue()
            return
        for name, address in zip(self._inputs, addresses, strict=True):
            self._context.bind(name, address)
        # The first run also does what a capture must not contain: compiling kernels, and changes of shape.
        self._context.enqueue(self._memory.stream)
        if self._capture and addresses not in self._launches and len(self._launches) < MOST_GRAPHS:
            self._launches[addresses] = self._captured()

    def free(self) -> None:
        """Free graphs and context."""
        for launch in self._launches.values():
            if launch is not None:
                launch.free()
        self._launches.clear()
        self._context.free()

    def _captured(self) -> Launch | None:
        """The run as a CUDA graph; None if something in it cannot be captured."""
        stream = self._memory.stream
        if not self._context.capturable(stream):
            return None
        try:
            return self._memory.capture(lambda: self._context.enqueue(stream))
        except DeviceFailed:
            return None


class _Room:
    """Memory for an output whose size depends on the data: it grows, and never shrinks."""

    def __init__(self, tensor: TensorRecord, memory: DeviceMemory, outputs: dict[str, DeviceArray]) -> None:
        self._tensor, self._memory, self._outputs = tensor, memory, outputs
        self.allocation: Allocation | None = None

    def attach(self, context: TensorRtContext) -> None:
        """Let `context` request its memory here."""
        context.allocate_output(self._tensor.name, self._room, self._shaped)

    def _room(self, nbytes: int) -> int:
        if self.allocation is None or self.allocation.nbytes < nbytes:
            if self.allocation is not None:
                self.allocation.free()
            self.allocation = self._memory.allocate(nbytes)
        return self.allocation.address

    def _shaped(self, shape: tuple[int, ...]) -> None:
        assert self.allocation is not None
        dtype = np.dtype(self._tensor.dtype)
        self._outputs[self._tensor.name] = DeviceArray.of(
            self.allocation.address, shape, dtype, stream=self._memory.stream
        )


def buckets_from_profiles(profiles: Sequence[TokenCount]) -> tuple[Bucket, ...]:
    """The buckets of an engine, ascending: the size of each exact profile, and `STEPS` even steps of each range."""
    if not profiles:
        return ONLY
    sizes: dict[int, int] = {}
    # Of two profiles that include a size, the narrower is better tuned for it: it comes last and overwrites.
    widest_first = sorted(enumerate(profiles), key=lambda entry: entry[1].minimum - entry[1].maximum)
    for number, counts in widest_first:
        steps = {max(counts.minimum, -(-counts.maximum * step // STEPS)) for step in range(1, STEPS + 1)}
        exact = counts.minimum == counts.maximum
        sizes.update(dict.fromkeys({counts.maximum} if exact else steps, number))
    return tuple(Bucket(size, sizes[size]) for size in sorted(sizes))


def bucket_for_count(buckets: Sequence[Bucket], count: int, *, graph: str) -> Bucket:
    """The smallest bucket that holds `count` tokens.

    Raises:
        InputError: none does.
    """
    for bucket in buckets:
        if bucket.size >= count:
            return bucket
    raise InputError(
        f"{graph}: {count} tokens run, its engine was built for at most {buckets[-1].size}; "
        f"build it for more: dovit build BUNDLE --buckets {count}"
    )


def _fixed(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """`shape` with `size` for the open side (-1)."""
    return tuple(size if side == -1 else side for side in shape)
