"""TensorRT engines as a backend: finds what `dovit build` made, proves that it may run, and runs it on the GPU.

An engine is found, its sidecar compared with bundle, package and GPU, and its bytes with the sidecar, before TensorRT
sees any of it. Stages hand each other device memory; the host reads the count alone, through pinned memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.base import Array, Buffer, EngineOptions
from dovit_deploy.engines.cuda.foreign_arrays import device_array_of, is_on_a_device
from dovit_deploy.engines.cuda.memory import (
    DEFAULT_MEMORY,
    MEMORIES,
    Block,
    DeviceArray,
    DeviceMemory,
    Mark,
    opened_memory,
)
from dovit_deploy.engines.plugins.library import check_plugins_run, registered_plugins
from dovit_deploy.engines.tensorrt.context import (
    Bucket,
    BucketContext,
    TensorRtContext,
    TensorRtEngine,
    bucket_for_count,
    buckets_from_profiles,
)
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, tensorrt_package
from dovit_deploy.engines.tensorrt.record import EngineRecord, TensorRecord
from dovit_deploy.engines.tensorrt.search import EngineSearch
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet, checked_plan
from dovit_deploy.errors import EngineMissing, InputError, UsageError
from dovit_deploy.graphs.padding import INDEX, VALID

# One engine with its buffers, one context for each bucket: takes arrays in, runs, hands on device memory.
#
# Outputs lie where they lay before, run after run; so do inputs that come from the host, each in a slot of
# its own. That
# is what lets a CUDA graph be launched again.

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


@dataclass
class _Opened:
    """What was opened for one bundle."""

    engines: EngineSet
    stages: dict[str, TensorRtStage] = field(default_factory=dict)


class TensorRtBackend:
    """Runs the engines of one package.

    Buffers are `DeviceArray`s where an engine wrote them, and the caller's own arrays until an engine takes them in.
    What an engine wrote stays until it runs again.

    Args:
        cuda_memory: key of `cuda_memory.MEMORIES`.
        trust_engine: run also engines that came with the bundle.
        cache: default: this user's.
        open_memory: for tests.
    """

    def __init__(
        self,
        package: TensorRtPackage,
        *,
        precision: str,
        cuda_memory: str = DEFAULT_MEMORY,
        trust_engine: bool = False,
        cache: EngineCache | None = None,
        open_memory: Callable[[str], DeviceMemory] | None = None,
    ) -> None:
        self.name, self.precision = package.engine, precision
        self._package, self._trust, self._cache = package, trust_engine, cache or EngineCache()
        self._memory_name, self._open_memory = cuda_memory, open_memory or opened_memory
        self._memory: DeviceMemory | None = None
        self._bundles: dict[Path, _Opened] = {}
        self._staging: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def load(self, bundle: Bundle, graph: str) -> TensorRtStage:
        """Load the engine of `graph`, and run it once in every bucket.

        Raises:
            EngineMissing: none was built.
            EngineInvalid: it does not fit the bundle, the package or the GPU, is damaged, or is not trusted.
            ProviderMissing: no driver, or no GPU.
            PackageMissing: what the engine's plugins or the memory need is not installed.
            DeviceOutOfMemory: it does not fit.
        """
        search = EngineSearch(bundle, self._package, self.precision, self._cache, trust=self._trust)
        opened = self._opened(bundle, search, graph)
        if graph not in opened.engines.records:
            raise EngineMissing(f"{opened.engines.folder} has no engine of {graph}; build it with: {search.build_line}")
        try:
            plan = checked_plan(opened.engines, graph)
            stage = self._stage(opened, graph, plan, closed=lambda: self._closed(bundle.path, graph))
            opened.stages[graph] = stage
            stage.warm_up(_sources(opened, graph))
        except BaseException:
            self._give_up(bundle.path, graph)
            raise
        return stage

    def upload(self, array: Array) -> Buffer:
        """The array itself: the engine that takes it brings it to the device. Device arrays of others are taken too."""
        if not is_on_a_device(array):
            return np.asarray(array)
        taken = array if isinstance(array, DeviceArray) else device_array_of(array)
        if taken.stream is not None and taken.stream != self._device().stream:
            self._device().follow(taken.stream)
        return taken

    def download(self, buffer: Buffer) -> Array:
        """A copy on the host, through pinned memory; waits for what is enqueued up to here."""
        if not isinstance(buffer, DeviceArray):
            return np.asarray(buffer)
        memory = self._device()
        if self._staging.nbytes < buffer.nbytes:
            self._staging = memory.pinned(buffer.nbytes)
        host = self._staging[: buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)
        memory.copy(host, buffer)
        memory.mark().wait()
        return host.copy()

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """The first `count` entries; those behind them stay within reach of a bucket."""
        return buffer.narrow(count) if isinstance(buffer, DeviceArray) else buffer[:count]

    def _opened(self, bundle: Bundle, search: EngineSearch, graph: str) -> _Opened:
        """The engines of `bundle`, looked for once."""
        if bundle.path not in self._bundles:
            found = search.found()
            if graph in found[0].records:
                # What is damaged is said whether there is a GPU or not.
                checked_plan(found[0], graph)
            self._bundles[bundle.path] = _Opened(found[0])
            try:
                capability = self._device().device.compute_capability
                self._bundles[bundle.path] = _Opened(search.for_gpu(found, capability))
            except BaseException:
                self._closed(bundle.path, graph)
                raise
        return self._bundles[bundle.path]

    def _stage(self, opened: _Opened, graph: str, plan: bytes, *, closed: Callable[[], None]) -> TensorRtStage:
        memory, record = self._device(), opened.engines.records[graph]
        if record.plugins is not None:
            check_plugins_run()
            registered_plugins(self._package)
        kernels = self._cache.kernels_path(opened.engines.entry.key, graph, memory.device.compute_capability)
        engine = TensorRtEngine(self._package, plan, name=graph, kernels=kernels)
        return TensorRtStage(engine, record, memory, closed=closed)

    def _device(self) -> DeviceMemory:
        if self._memory is None:
            self._memory = self._open_memory(self._memory_name)
        return self._memory

    def _give_up(self, path: Path, graph: str) -> None:
        """Leave nothing of an engine that could not be loaded."""
        stage = self._bundles[path].stages.get(graph)
        if stage is not None:
            stage.close()
        else:
            self._closed(path, graph)

    def _closed(self, path: Path, graph: str) -> None:
        """The last engine that closes lets go of the device."""
        opened = self._bundles.get(path)
        if opened is not None:
            opened.stages.pop(graph, None)
            if not opened.stages:
                del self._bundles[path]
        if not self._bundles and self._memory is not None:
            self._staging = np.empty(0, np.uint8)
            self._memory.close()
            self._memory = None


def _sources(opened: _Opened, graph: str) -> dict[str, DeviceArray]:
    """What a stage will take from the one before it, where that is loaded: `tokens` and `index` (= its `order`)."""
    number = graph.removeprefix("stage")
    before = opened.stages.get(f"stage{int(number) - 1}") if number.isdecimal() else None
    if before is None or "order" not in before.outputs:
        return {}
    tokens = before.outputs["tokens_out" if "tokens_out" in before.outputs else "tokens"]
    return {"tokens": tokens, "index": before.outputs["order"]}


def tensorrt(*, precision: str, threads: int | None, options: EngineOptions) -> TensorRtBackend:
    """Entry point of the registry; a GPU has no use for `threads`."""
    del threads
    return _backend("tensorrt", precision, options)


def tensorrt_rtx(*, precision: str, threads: int | None, options: EngineOptions) -> TensorRtBackend:
    """Entry point of the registry; a GPU has no use for `threads`."""
    del threads
    return _backend("tensorrt-rtx", precision, options)


def _backend(engine: str, precision: str, options: EngineOptions) -> TensorRtBackend:
    memory = options.cuda_memory or DEFAULT_MEMORY
    if memory not in MEMORIES:
        raise UsageError(f"--cuda-memory: '{memory}' given; there are: {', '.join(MEMORIES)}")
    package = tensorrt_package(engine)
    return TensorRtBackend(package, precision=precision, cuda_memory=memory, trust_engine=options.trust_engine)
