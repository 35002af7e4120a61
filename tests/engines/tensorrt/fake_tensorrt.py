"""A fake TensorRT: engines are ONNX graphs with their weights, run by ONNX Runtime on the memory of a fake device.

It keeps the rules that the real one has and a runtime could break: work is enqueued and sees its arguments when it
runs, a context needs shapes, addresses and memory before it runs, the first run of a context cannot be captured, a
profile has its sizes, and what the data decide is placed by an allocator.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.cuda.memory import DeviceArray
from dovit_deploy.engines.tensorrt.package import Capabilities, TensorRtPackage
from tests.engines.cuda.fake_device import ALIGNMENT, MEMORIES, view
from tests.engines.tensorrt.fake_builder import fake_package

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self) -> None:
        pass


class IOutputAllocator:
    def __init__(self) -> None:
        pass


@dataclass
class Faults:
    """What goes wrong, by the name of the call -> what TensorRT logs."""

    deserialize: str = ""
    context: str = ""
    execute: str = ""


@dataclass
class FakeTensorRt:
    """The state behind the module: `profiles` by the digest of an engine, and everything that was made."""

    faults: Faults = field(default_factory=Faults)
    profiles: dict[str, tuple[TokenCount, ...]] = field(default_factory=dict)
    capturable: bool = True
    compiled: bytes = b"kernels"
    engines: list[FakeEngine] = field(default_factory=list)
    contexts: list[FakeContext] = field(default_factory=list)
    given_caches: list[bytes] = field(default_factory=list)


@functools.lru_cache(maxsize=32)
def session_of(plan: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])


class FakeRuntime:
    def __init__(self, state: FakeTensorRt, logger) -> None:
        self.state, self.logger = state, logger

    def deserialize_cuda_engine(self, plan: bytes):
        if self.state.faults.deserialize:
            self.logger.log(ILogger.ERROR, self.state.faults.deserialize)
            return None
        engine = FakeEngine(self.state, self.logger, plan)
        self.state.engines.append(engine)
        return engine


class FakeCache:
    def __init__(self, state: FakeTensorRt) -> None:
        self.state = state

    def deserialize(self, blob: bytes) -> bool:
        self.state.given_caches.append(blob)
        return True

    def serialize(self) -> bytes:
        return self.state.compiled


class FakeConfig:
    def __init__(self, state: FakeTensorRt) -> None:
        self.state, self.strategy, self.cache = state, None, None
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache(self.state)

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    def __init__(self, state: FakeTensorRt, logger, plan: bytes) -> None:
        self.state, self.logger, self.session = state, logger, session_of(plan)
        self.profiles = state.profiles.get(hashlib.sha256(plan).hexdigest(), ())

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 4096 * (1 + profile)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.state)

    def create_execution_context(self, *, runtime_config: FakeConfig | None = None, strategy=None):
        if self.state.faults.context:
            self.logger.log(ILogger.ERROR, self.state.faults.context)
            return None
        user_managed = "USER_MANAGED" in (strategy, runtime_config.strategy if runtime_config else None)
        context = FakeContext(self, needs_memory=user_managed)
        self.state.contexts.append(context)
        return context


class FakeContext:
    def __init__(self, engine: FakeEngine, *, needs_memory: bool) -> None:
        self.engine, self.needs_memory = engine, needs_memory
        self.profile, self.shapes, self.addresses = 0, {}, {}
        self.memory: tuple[int, int] | None = None
        self.allocators: dict[str, IOutputAllocator] = {}
        self.runs = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not self.shapes, "a change of profile forgets the shapes"
        self.profile = profile
        return profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        counts = self.engine.profiles[self.profile]
        self.shapes[name] = shape
        return counts.minimum <= shape[0] <= counts.maximum

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert address % ALIGNMENT == 0
        assert nbytes >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.memory = address, nbytes

    def set_output_allocator(self, name: str, allocator: IOutputAllocator) -> bool:
        self.allocators[name] = allocator
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.state.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.state.faults.execute:
            self.engine.logger.log(ILogger.ERROR, self.engine.state.faults.execute)
            return False
        memory = MEMORIES[stream]
        assert self.memory is not None or not self.needs_memory, "no memory for activations"
        assert memory.capturing is None or self.runs, "the first run does what cannot be captured"
        self.runs += 1
        inputs = {port.name: self.array(port, self.shape(port), memory) for port in self.engine.session.get_inputs()}
        fixed = [port for port in self.engine.session.get_outputs() if port.name not in self.allocators]
        outputs = {port.name: self.array(port, tuple(port.shape), memory) for port in fixed}

        def work() -> None:
            if self.needs_memory:
                memory.check(DeviceArray.of(self.memory[0], (self.memory[1],), np.uint8))
            for name, values in self.computed(inputs, memory).items():
                memory.check(outputs[name])
                view(outputs[name])[...] = values

        if self.allocators:
            assert memory.capturing is None, "what waits cannot be captured"
            memory.mark().wait()
            self.run_and_place(inputs, memory, stream)
        else:
            sizes = [array.shape[0] for name, array in inputs.items() if name == "index"]
            memory.enqueue(f"run {sizes[0] if sizes else ''}".strip(), work)
        return True

    def shape(self, port) -> tuple[int, ...]:
        return self.shapes[port.name] if port.name in self.shapes else tuple(port.shape)

    def array(self, port, shape: tuple[int, ...], memory) -> DeviceArray:
        assert all(isinstance(side, int) for side in shape), f"{port.name} has no shape"
        return DeviceArray.of(self.addresses[port.name], shape, TYPES[port.type])

    def computed(self, inputs: dict[str, DeviceArray], memory) -> dict[str, np.ndarray]:
        for array in inputs.values():
            memory.check(array)
        names = [port.name for port in self.engine.session.get_outputs()]
        feed = {name: view(array).copy() for name, array in inputs.items()}
        if "index" in feed:
            # On a GPU a position out of range would be an illegal address, and a repeated one a race.
            assert len(np.unique(feed["index"])) == len(feed["index"])
            assert 0 <= feed["valid"] <= len(feed["index"])
        return dict(zip(names, self.engine.session.run(names, feed), strict=True))

    def run_and_place(self, inputs: dict[str, DeviceArray], memory, stream: int) -> None:
        for name, values in self.computed(inputs, memory).items():
            if name in self.allocators:
                allocator = self.allocators[name]
                address = allocator.reallocate_output_async(name, 0, values.nbytes, ALIGNMENT, stream)
                allocator.notify_shape(name, values.shape)
            else:
                address = self.addresses[name]
            view(DeviceArray.of(address, values.shape, values.dtype))[...] = values


def fake_tensorrt(state: FakeTensorRt, engine: str = "tensorrt-rtx", **capabilities: bool) -> TensorRtPackage:
    """The package, with what the builder's fake has; `capabilities` change what it can do."""
    module = ModuleType(f"fake_{engine}")
    module.ILogger, module.IOutputAllocator = ILogger, IOutputAllocator
    module.Runtime = lambda logger: FakeRuntime(state, logger)
    module.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED")
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    module.CudaGraphStrategy = SimpleNamespace(DISABLED="DISABLED")
    made = fake_package(engine)
    known = Capabilities(**{**vars(made.capabilities), **capabilities})
    return TensorRtPackage(engine, made.version, known, module, made.default_compute_capabilities)
