"""One engine with its buffers, one context for each bucket: takes arrays in, runs, hands on device memory.

Outputs lie where they lay before, run after run; so do inputs that come from the host, each in a slot of its own. That
is what lets a CUDA graph be launched again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dovit_deploy.engines.base import Array, Buffer
from dovit_deploy.engines.bucket_context import BucketContext
from dovit_deploy.engines.buckets import Bucket, bucket_for_count, buckets_from_profiles
from dovit_deploy.engines.cuda_memory import Block, DeviceArray, DeviceMemory, Mark
from dovit_deploy.engines.engine_record import EngineRecord, TensorRecord
from dovit_deploy.engines.padded_form import INDEX, VALID
from dovit_deploy.engines.tensorrt_context import TensorRtContext, TensorRtEngine
from dovit_deploy.errors import InputError

SMALL = 4096
"""Bytes; whether a smaller input is still what it was is looked at before it is brought again."""


@dataclass
class _Slot:
    """Where an input that comes from the host is brought."""

    device: DeviceArray
    pinned: Array
    brought: bool = False


class TensorRtStage:
    """The engine of one graph.

    Args:
        record: its sidecar.
        memory: of the GPU that it runs on.
        closed: called once when everything is given back.
    """

    def __init__(
        self, engine: TensorRtEngine, record: EngineRecord, memory: DeviceMemory, *, closed: Callable[[], None]
    ) -> None:
        self._engine, self._record, self._memory, self._closed = engine, record, memory, closed
        self.buckets = buckets_from_profiles(record.profiles)
        self._contexts: dict[Bucket, BucketContext] = {}
        self._slots: dict[str, _Slot] = {}
        self._blocks: list[Block] = []
        self._rooms: dict[str, _Room] = {}
        self._scratch: Block | None = None
        self._staged: Mark | None = None
        self.outputs: dict[str, DeviceArray] = {}
        """Where the outputs lie."""

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Enqueue the graph; the outputs are device arrays, written when the stream comes to it.

        Raises:
            InputError: an input of another shape or type, or more tokens than the engine was built for.
            DeviceFailed: TensorRT refuses.
        """
        given, bucket = dict(inputs), self.buckets[0]
        if INDEX in given:
            count = len(given[INDEX])
            bucket = bucket_for_count(self.buckets, count, graph=self._record.graph)
            given[VALID] = np.asarray(count, np.int64)
            given[INDEX] = self._padded(given[INDEX], bucket.size)
        addresses = {tensor.name: self._address(tensor, given[tensor.name]) for tensor in self._record.inputs}
        self._staged = self._memory.mark()
        context = self._context(bucket)
        context.enqueue({**addresses, **{name: array.address for name, array in self._placed().items()}})
        return {tensor.name: self.outputs[tensor.name] for tensor in self._record.outputs}

    def warm_up(self, sources: Mapping[str, DeviceArray]) -> None:
        """Run every bucket once, so that nothing is allocated, compiled or captured while frames wait.

        Args:
            sources: inputs that will come from other engines, where they will lie. What they hold is overwritten.

        Raises:
            DeviceFailed: see `run`; or what was run failed.
        """
        takes = {tensor.name: tensor for tensor in self._record.inputs if tensor.name != VALID}
        for bucket in reversed(self.buckets):
            inputs: dict[str, Buffer] = {
                name: np.zeros(_fixed(tensor.shape, bucket.size), tensor.dtype) for name, tensor in takes.items()
            }
            inputs.update(sources)
            if INDEX in inputs:
                # Whatever memory holds, positions must lie within the tokens.
                order = np.arange(takes["tokens"].shape[0])
                inputs[INDEX] = order[: bucket.size]
                if INDEX in sources:
                    self._memory.copy(sources[INDEX], order)
                    inputs[INDEX] = sources[INDEX].narrow(bucket.size)
            self.run(inputs)
            self._memory.mark().wait()

    @property
    def graphs(self) -> int:
        """How many CUDA graphs there are."""
        return sum(context.graphs for context in self._contexts.values())

    def close(self) -> None:
        """Wait for what is enqueued, and give everything back."""
        if self._engine is None:
            return
        self._memory.mark().wait()
        for context in self._contexts.values():
            context.free()
        self._contexts.clear()
        self._engine.close()
        for block in (*self._blocks, *(room.block for room in self._rooms.values() if room.block is not None)):
            block.free()
        self._slots.clear()
        self.outputs.clear()
        self._engine = None  # type: ignore[assignment]
        self._closed()

    def _context(self, bucket: Bucket) -> BucketContext:
        """The context of a bucket, made when it is first needed."""
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
        # Where the data decide how large an output is, TensorRT waits within a run, which cannot be captured.
        self._contexts[bucket] = BucketContext(context, self._memory, capture=not self._rooms)
        return self._contexts[bucket]

    def _give_scratch(self, context: TensorRtContext) -> None:
        """All contexts share one piece of memory, as large as the largest profile needs: they run one at a time."""
        if self._scratch is None:
            profiles = range(max(1, len(self._record.profiles)))
            self._scratch = self._memory.allocate(max(map(self._engine.scratch_bytes, profiles)))
            self._blocks.append(self._scratch)
        context.give_scratch(self._scratch.address, self._scratch.nbytes)

    def _placed(self) -> dict[str, DeviceArray]:
        """The outputs of known size, allocated once."""
        for tensor in self._record.outputs:
            if -1 not in tensor.shape and tensor.name not in self.outputs:
                self.outputs[tensor.name] = self._allocated(tensor, tensor.shape)
        return {tensor.name: self.outputs[tensor.name] for tensor in self._record.outputs if -1 not in tensor.shape}

    def _allocated(self, tensor: TensorRecord, shape: tuple[int, ...]) -> DeviceArray:
        dtype = np.dtype(tensor.dtype)
        block = self._memory.allocate(math.prod(shape) * dtype.itemsize)
        self._blocks.append(block)
        return DeviceArray.of(block.address, shape, dtype, owner=block, stream=self._memory.stream)

    def _address(self, tensor: TensorRecord, value: Buffer) -> int:
        """Where the engine reads `value`: where it lies on the device, or where it is brought now."""
        shape = tuple(value.shape)
        if shape != _fixed(tensor.shape, shape[0] if shape else 0):
            raise InputError(f"{self._record.graph}: {tensor.name} of shape {shape} given, {tensor.shape} needed")
        if isinstance(value, DeviceArray):
            if value.dtype != np.dtype(tensor.dtype):
                raise InputError(f"{self._record.graph}: {tensor.name}: {value.dtype} given, {tensor.dtype} needed")
            return value.address
        slot = self._slot(tensor)
        pinned = slot.pinned[: shape[0]] if -1 in tensor.shape else slot.pinned
        if slot.brought and pinned.nbytes <= SMALL and np.array_equal(pinned, value):
            return slot.device.address
        if self._staged is not None:
            # What was brought last time may not have left the pinned memory yet.
            self._staged.wait()
        np.copyto(pinned, value, casting="same_kind")
        self._memory.copy(slot.device.narrow(shape[0]) if -1 in tensor.shape else slot.device, pinned)
        slot.brought = -1 not in tensor.shape
        return slot.device.address

    def _slot(self, tensor: TensorRecord) -> _Slot:
        """The slot of an input, as large as it can ever be."""
        if tensor.name not in self._slots:
            device = self._allocated(tensor, _fixed(tensor.shape, self.buckets[-1].size))
            pinned = self._memory.pinned(device.nbytes).view(device.dtype).reshape(device.shape)
            self._slots[tensor.name] = _Slot(device, pinned)
        return self._slots[tensor.name]

    def _padded(self, index: Buffer, size: int) -> Buffer:
        """`index` of the bucket's length: on the device by what follows in its order, else by other positions."""
        if isinstance(index, DeviceArray):
            if index.room >= size:
                return index.narrow(size)
            host = self._memory.pinned(index.nbytes).view(index.dtype).reshape(index.shape)
            self._memory.copy(host, index)
            self._memory.mark().wait()
            index = host
        total = next(tensor.shape[0] for tensor in self._record.inputs if tensor.name == "tokens")
        others = np.setdiff1d(np.arange(total), index)
        return np.concatenate([index, others[: size - len(index)]])


class _Room:
    """Memory for an output whose size the data decide: it grows, and never shrinks."""

    def __init__(self, tensor: TensorRecord, memory: DeviceMemory, outputs: dict[str, DeviceArray]) -> None:
        self._tensor, self._memory, self._outputs = tensor, memory, outputs
        self.block: Block | None = None

    def attach(self, context: TensorRtContext) -> None:
        """Let `context` ask here."""
        context.allocate_output(self._tensor.name, self._room, self._shaped)

    def _room(self, nbytes: int) -> int:
        if self.block is None or self.block.nbytes < nbytes:
            if self.block is not None:
                self.block.free()
            self.block = self._memory.allocate(nbytes)
        return self.block.address

    def _shaped(self, shape: tuple[int, ...]) -> None:
        assert self.block is not None
        dtype = np.dtype(self._tensor.dtype)
        self._outputs[self._tensor.name] = DeviceArray.of(
            self.block.address, shape, dtype, owner=self.block, stream=self._memory.stream
        )


def _fixed(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """`shape` with `size` for what is open."""
    return tuple(size if side == -1 else side for side in shape)
