"""A fake TensorRT: engines are ONNX graphs with their weights, run by ONNX Runtime on the memory of a fake device.

It keeps the rules that the real one has and a runtime could break: work is enqueued and sees its arguments when it
runs, a context needs shapes, addresses and memory before it runs, the first run of a context cannot be captured, a
profile has its sizes, and what the data decide is placed by an allocator. Every object has the attributes that the real
one has in the version that it stands for (bindings.py).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import numpy as np
import onnxruntime

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from tests.engines.cuda.fake_device import ALIGNMENT, MEMORIES, view
from tests.engines.tensorrt.bindings import RTX, Bindings, FakeOf, all_bindings
from tests.engines.tensorrt.fake_builder import fake_package

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}
USER_MANAGED = 2
"""ExecutionContextAllocationStrategy.USER_MANAGED in every version."""


class FakeLogger:
    """Base of our own logger, as `ILogger` is."""

    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self) -> None:
        pass


class FakeOutputAllocator:
    """Base of our own allocator, as `IOutputAllocator` is."""

    def __init__(self) -> None:
        pass


@dataclass
class Faults:
    """What goes wrong, by the name of the call -> what TensorRT logs."""

    start: str = ""
    deserialize: str = ""
    context: str = ""
    execute: str = ""
    cache: str = ""


@dataclass
class FakeTensorRt:
    """The state behind the module: `profiles` by the digest of an engine, and everything that was made."""

    bindings: Bindings = field(default_factory=lambda: all_bindings()[RTX])
    faults: Faults = field(default_factory=Faults)
    profiles: dict[str, tuple[TokenCount, ...]] = field(default_factory=dict)
    capturable: bool = True
    compiled: bytes = b"kernels"
    engines: list[FakeEngine] = field(default_factory=list)
    contexts: list[FakeContext] = field(default_factory=list)
    configs: list[FakeConfig] = field(default_factory=list)
    given_caches: list[bytes] = field(default_factory=list)


@functools.lru_cache(maxsize=32)
def session_of(plan: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])


class FakeRuntime(FakeOf, of="Runtime"):
    def __init__(self, state: FakeTensorRt, logger) -> None:
        super().__init__(state.bindings)
        self._state, self._logger = state, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes):
        if self._state.faults.deserialize:
            self._logger.log(FakeLogger.ERROR, self._state.faults.deserialize)
            return None
        engine = FakeEngine(self._state, self._logger, serialized_engine)
        self._state.engines.append(engine)
        return engine


class FakeCache(FakeOf, of="IRuntimeCache"):
    def __init__(self, state: FakeTensorRt, logger) -> None:
        super().__init__(state.bindings)
        self._state, self._logger = state, logger

    def deserialize(self, blob: bytes) -> bool:
        self._state.given_caches.append(blob)
        if self._state.faults.cache:
            self._logger.log(FakeLogger.ERROR, self._state.faults.cache)
        return not self._state.faults.cache

    def serialize(self) -> bytes:
        return self._state.compiled


class FakeConfig(FakeOf, of="IRuntimeConfig"):
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, state: FakeTensorRt, logger) -> None:
        super().__init__(state.bindings)
        self._state, self._logger, self._strategy, self._cache = state, logger, 0, None
        state.configs.append(self)

    def set_execution_context_allocation_strategy(self, strategy) -> None:
        self._strategy = int(strategy)

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache(self._state, self._logger)

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self._cache = cache
        return True


class FakeEngine(FakeOf, of="ICudaEngine"):
    def __init__(self, state: FakeTensorRt, logger, plan: bytes) -> None:
        super().__init__(state.bindings)
        self._state, self._logger, self._session = state, logger, session_of(plan)
        self._profiles = state.profiles.get(hashlib.sha256(plan).hexdigest(), ())

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 4096 * (1 + profile_index)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self._state, self._logger)

    def create_execution_context(self, *, strategy=None, runtime_config: FakeConfig | None = None):
        if self._state.faults.context:
            self._logger.log(FakeLogger.ERROR, self._state.faults.context)
            return None
        chosen = strategy if runtime_config is None else runtime_config._strategy
        context = FakeContext(self, needs_memory=chosen == USER_MANAGED)
        self._state.contexts.append(context)
        return context


class FakeContext(FakeOf, of="IExecutionContext"):
    def __init__(self, engine: FakeEngine, *, needs_memory: bool) -> None:
        super().__init__(engine._state.bindings)
        self._engine, self._needs_memory = engine, needs_memory
        self._profile, self._shapes, self._addresses = 0, {}, {}
        self._memory: tuple[int, int] | None = None
        self._allocators: dict[str, FakeOutputAllocator] = {}
        self._runs = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert not self._shapes, "a change of profile forgets the shapes"
        self._profile = profile_index
        return profile_index < len(self._engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        counts = self._engine._profiles[self._profile]
        self._shapes[name] = shape
        return counts.minimum <= shape[0] <= counts.maximum

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        assert size >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        self._memory = memory, size

    def set_output_allocator(self, name: str, output_allocator: FakeOutputAllocator) -> bool:
        self._allocators[name] = output_allocator
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine._state.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        state = self._engine._state
        if state.faults.execute:
            self._engine._logger.log(FakeLogger.ERROR, state.faults.execute)
            return False
        memory = MEMORIES[stream_handle]
        assert self._memory is not None or not self._needs_memory, "no memory for activations"
        assert memory.capturing is None or self._runs, "the first run does what cannot be captured"
        self._runs += 1
        session = self._engine._session
        inputs = {port.name: self._array(port, self._shape(port)) for port in session.get_inputs()}
        fixed = [port for port in session.get_outputs() if port.name not in self._allocators]
        outputs = {port.name: self._array(port, tuple(port.shape)) for port in fixed}

        def work() -> None:
            if self._needs_memory:
                memory.check(DeviceArray.of(self._memory[0], (self._memory[1],), np.uint8))
            for name, values in self._computed(inputs, memory).items():
                memory.check(outputs[name])
                view(outputs[name])[...] = values

        if self._allocators:
            assert memory.capturing is None, "what waits cannot be captured"
            memory.mark().wait()
            self._run_and_place(inputs, memory, stream_handle)
        else:
            sizes = [array.shape[0] for name, array in inputs.items() if name == "index"]
            memory.enqueue(f"run {sizes[0] if sizes else ''}".strip(), work)
        return True

    def _shape(self, port) -> tuple[int, ...]:
        return self._shapes[port.name] if port.name in self._shapes else tuple(port.shape)

    def _array(self, port, shape: tuple[int, ...]) -> DeviceArray:
        assert all(isinstance(side, int) for side in shape), f"{port.name} has no shape"
        return DeviceArray.of(self._addresses[port.name], shape, TYPES[port.type])

    def _computed(self, inputs: dict[str, DeviceArray], memory) -> dict[str, np.ndarray]:
        for array in inputs.values():
            memory.check(array)
        names = [port.name for port in self._engine._session.get_outputs()]
        feed = {name: view(array).copy() for name, array in inputs.items()}
        if "index" in feed:
            # On a GPU a position out of range would be an illegal address, and a repeated one a race.
            assert len(np.unique(feed["index"])) == len(feed["index"])
            assert 0 <= feed["valid"] <= len(feed["index"])
        return dict(zip(names, self._engine._session.run(names, feed), strict=True))

    def _run_and_place(self, inputs: dict[str, DeviceArray], memory, stream: int) -> None:
        for name, values in self._computed(inputs, memory).items():
            if name in self._allocators:
                allocator = self._allocators[name]
                address = allocator.reallocate_output_async(name, 0, values.nbytes, ALIGNMENT, stream)
                allocator.notify_shape(name, values.shape)
            else:
                address = self._addresses[name]
            view(DeviceArray.of(address, values.shape, values.dtype))[...] = values


def fake_tensorrt(state: FakeTensorRt) -> TensorRtPackage:
    """The package of the version that `state` stands for."""

    def runtime(logger) -> FakeRuntime:
        if state.faults.start:
            logger.log(FakeLogger.ERROR, state.faults.start)
            # The real bindings' own words, read from them (10.0.1 and 11.4) on libraries that return nothing.
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRuntime(state, logger)

    fakes = {"ILogger": FakeLogger, "IOutputAllocator": FakeOutputAllocator, "Runtime": runtime}
    return fake_package(bindings=state.bindings, fakes=fakes)
