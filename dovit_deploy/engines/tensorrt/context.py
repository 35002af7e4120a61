"""One engine deserialised, and contexts that run it: TensorRT's own calls for running, and nothing else.

What TensorRT answers with None or False becomes an error that carries what it logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.cuda.memory import DeviceMemory, Launch
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.errors import (
    DeviceFailed,
    DeviceOutOfMemory,
    DovitError,
    EngineInvalid,
    InputError,
    ProviderMissing,
)
from dovit_deploy.files import write_bytes

CUDA_ERROR = re.compile(r"cudaError (\d+)")
NO_DRIVER = frozenset({35, 100, 101, 999})
"""cudaErrorInsufficientDriver, NoDevice, InvalidDevice, Unknown (a driver that was updated and not restarted)."""
OUT_OF_MEMORY = 2
SHOWN = 200


class TensorRtEngine:
    """A deserialised engine.

    Args:
        plan: the engine's bytes, already checked against its sidecar: deserialising can run what they carry.
        name: for messages.
        kernels: where kernels that TensorRT for RTX compiles on the device are kept; None: nowhere.

    Raises:
        ProviderMissing: no driver, or one that is too old.
        EngineInvalid: TensorRT does not take the engine.
        DeviceOutOfMemory: it does not fit.
    """

    def __init__(self, package: TensorRtPackage, plan: bytes, *, name: str, kernels: Path | None = None) -> None:
        trt = package.module
        self._package, self._name, self._kernels = package, name, kernels
        self._logger = package.logger(everything=False)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._error("TensorRT does not take the engine", otherwise=EngineInvalid)
        self._config: Any = self._runtime_config() if package.capabilities.runtime_config else None
        self._cache = None if self._config is None or kernels is None else self._runtime_cache(kernels)

    def scratch_bytes(self, profile: int) -> int:
        """Device memory for activations that a context of `profile` must be given; 0 where it takes its own."""
        if not self._package.capabilities.given_memory:
            return 0
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(self, profile: int, stream: int) -> TensorRtContext:
        """A context for an optimisation profile.

        Raises:
            DeviceFailed: it cannot be made.
        """
        strategies = self._package.module.ExecutionContextAllocationStrategy
        if self._config is not None:
            context = self._engine.create_execution_context(runtime_config=self._config)
        elif self._package.capabilities.given_memory:
            context = self._engine.create_execution_context(strategy=strategies.USER_MANAGED)
        else:
            context = self._engine.create_execution_context(strategy=strategies.STATIC)
        if context is None or not (profile == 0 or context.set_optimization_profile_async(profile, stream)):
            raise self._error(f"no execution context for profile {profile}", otherwise=DeviceFailed)
        return TensorRtContext(context, self._package, lambda what: self._error(what, otherwise=DeviceFailed))

    def close(self) -> None:
        """Keep the kernels that were compiled, and free the engine."""
        if self._cache is not None and self._kernels is not None and self._engine is not None:
            blob = self._cache.serialize()
            # Where they cannot be written they are compiled again next time.
            with suppress(OSError):
                self._kernels.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if blob is not None:
                    write_bytes(self._kernels, bytes(memoryview(blob)))
        self._cache = self._config = self._engine = self._runtime = None

    def _runtime_config(self) -> Any:  # noqa: ANN401
        trt, config = self._package.module, self._engine.create_runtime_config()
        if self._package.capabilities.given_memory:
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Each context has one shape: its kernels are compiled for it before a graph is captured, and by us alone.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return config

    def _runtime_cache(self, path: Path) -> Any:  # noqa: ANN401
        cache = self._config.create_runtime_cache()
        if path.is_file():
            # TensorRT itself refuses what was compiled for another GPU, driver or version.
            cache.deserialize(path.read_bytes())
        self._config.set_runtime_cache(cache)
        return cache

    def _error(self, what: str, *, otherwise: type[DovitError]) -> DovitError:
        """`what` with what TensorRT logged about it, as the kind of error that the log tells."""
        said = [text for message in self._logger.errors if (text := " ".join(message.split()))]
        self._logger.errors.clear()
        words = next((line for line in said if "Serialization" in line), said[0] if said else "it gave no reason")
        reason = f"{self._name}: {what}: {words[:SHOWN]}"
        codes = {int(code) for line in said for code in CUDA_ERROR.findall(line)}
        if "Serialization" in words:
            return EngineInvalid(f"{reason}; build it again with: dovit build BUNDLE --rebuild")
        if codes & NO_DRIVER:
            return ProviderMissing(f"{reason}; an NVIDIA driver for this version is needed, check it with: nvidia-smi")
        if OUT_OF_MEMORY in codes or any("out of memory" in line.lower() for line in said):
            return DeviceOutOfMemory(f"{reason}; end other programs that use the GPU, or take a smaller model")
        return otherwise(reason)


class TensorRtContext:
    """An execution context; `error` makes the error of a call that failed."""

    def __init__(self, context: Any, package: TensorRtPackage, error: Callable[[str], DovitError]) -> None:  # noqa: ANN401
        self._context, self._package, self._error = context, package, error
        self._allocators: list[Any] = []

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Settle the shape of an input that has none yet."""
        self._check(self._context.set_input_shape(name, shape), f"{name} cannot have shape {shape}")

    def give_scratch(self, address: int, nbytes: int) -> None:
        """Memory for activations; runs that follow each other on one stream may share it."""
        if self._package.capabilities.given_memory:
            self._context.set_device_memory(address, nbytes)

    def bind(self, name: str, address: int) -> None:
        """Where an input is read, or an output is written."""
        self._check(self._context.set_tensor_address(name, address), f"{name} cannot be bound")

    def allocate_output(self, name: str, room: Callable[[int], int], shaped: Callable[[tuple[int, ...]], None]) -> None:
        """Let an output whose size the data decide be placed by `room(nbytes)`, which gives an address.

        Args:
            shaped: told the shape when it is known.
        """
        allocator = _output_allocator(self._package.module, room, shaped)
        # TensorRT does not keep it alive.
        self._allocators.append(allocator)
        self._check(self._context.set_output_allocator(name, allocator), f"{name} takes no allocator")

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on `stream`."""
        self._check(self._context.execute_async_v3(stream), "TensorRT does not run")

    def capturable(self, stream: int) -> bool:
        """Whether a run can be captured as a CUDA graph; where TensorRT does not tell, it is tried."""
        return not self._package.capabilities.tells_capturable or bool(self._context.is_stream_capturable(stream))

    def free(self) -> None:
        """Free the context."""
        self._context = None
        self._allocators.clear()

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._error(what)


def _output_allocator(trt: Any, room: Callable[[int], int], shaped: Callable[[tuple[int, ...]], None]) -> Any:  # noqa: ANN401
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Asked for memory during a run, and told the shape at its end."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return room(size)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return room(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ANN401
            shaped(tuple(shape))

    return Allocator()


# An execution context for one bucket: run once by its kernels, from then on as one CUDA graph.
#
# A graph holds the addresses with which it was captured, so there is one for each set of addresses. Buffers stay where
# they are from frame to frame, so that there are few: the ordinary run, and replays, whose index comes from the host.

MOST_GRAPHS = 4
"""For callers whose own buffers move about; beyond them every kernel is enqueued by itself."""


class BucketContext:
    """A context whose shapes are set for good."""

    def __init__(self, context: TensorRtContext, memory: DeviceMemory, *, capture: bool) -> None:
        self._context, self._memory, self._capture = context, memory, capture
        self._launches: dict[tuple[int, ...], Launch | None] = {}

    @property
    def graphs(self) -> int:
        """How many CUDA graphs there are."""
        return sum(launch is not None for launch in self._launches.values())

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Enqueue one run on the memory's stream.

        Args:
            addresses: of every input and output but those that an allocator places, in an order that never changes.

        Raises:
            DeviceFailed: TensorRT refuses.
        """
        key = tuple(addresses.values())
        launch = self._launches.get(key)
        if launch is not None:
            launch.enqueue()
            return
        for name, address in addresses.items():
            self._context.bind(name, address)
        # The first run with these addresses also settles what a capture may not: compiling, and changes of shape.
        self._context.enqueue(self._memory.stream)
        if self._capture and key not in self._launches and len(self._launches) < MOST_GRAPHS:
            self._launches[key] = self._captured()

    def free(self) -> None:
        """Give back graphs and context."""
        for launch in self._launches.values():
            if launch is not None:
                launch.free()
        self._launches.clear()
        self._context.free()

    def _captured(self) -> Launch | None:
        """The run as a CUDA graph; None where something in it cannot be captured."""
        stream = self._memory.stream
        if not self._context.capturable(stream):
            return None
        try:
            return self._memory.capture(lambda: self._context.enqueue(stream))
        except DeviceFailed:
            return None


# Buckets: the few token counts that an engine really runs; every other count is rounded up to the next of them.
#
# A bucket has tuned kernels, an execution context and a CUDA graph of its own. What is rounded up is masked
# in the graph
# (graphs/padding.py), so that the result is that of the count itself.

STEPS = 16
"""Buckets of a profile that spans a range: at most a sixteenth of its largest count runs in vain."""


@dataclass(frozen=True)
class Bucket:
    """A token count, and the optimisation profile that runs it."""

    size: int
    profile: int


ONLY = (Bucket(0, 0),)
"""What a graph of one size has."""


def buckets_from_profiles(profiles: Sequence[TokenCount]) -> tuple[Bucket, ...]:
    """The buckets of an engine, ascending: the size of each exact profile, and `STEPS` even ones of each range."""
    if not profiles:
        return ONLY
    sizes: dict[int, int] = {}
    # Of two profiles that take a size, the narrower is tuned better for it.
    for number in sorted(range(len(profiles)), key=lambda place: profiles[place].minimum - profiles[place].maximum):
        counts = profiles[number]
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
