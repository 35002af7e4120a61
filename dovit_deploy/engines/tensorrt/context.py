"""One deserialised engine, and contexts that run it: TensorRT's own calls for running, and nothing else.

Where TensorRT returns None or False, the error raised here carries what it logged.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dovit_deploy.engines.tensorrt.package import TensorRtPackage
from dovit_deploy.errors import DeviceFailed, DeviceOutOfMemory, DovitError, EngineInvalid, ProviderMissing
from dovit_deploy.files import optional_writes, write_bytes

CUDA_ERROR = re.compile(r"(?:cudaError|CUDA initialization failure with error:) (\d+)")
NO_DRIVER = frozenset({35, 100, 101, 999})
"""cudaErrorInsufficientDriver, NoDevice, InvalidDevice, Unknown (a driver that was updated but not reloaded)."""
OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""
SHOWN = 200
"""Characters of TensorRT's message that an error repeats."""


class TensorRtEngine:
    """A deserialised engine.

    Args:
        plan: the engine's bytes, already checked against its sidecar: deserialising can run code that they carry.
        name: for messages.
        kernels: file that keeps the kernels which TensorRT for RTX compiles on the device; None: they are not kept.

    Raises:
        ProviderMissing: no driver, or one that is too old.
        EngineInvalid: TensorRT does not accept the engine.
        DeviceOutOfMemory: it does not fit.
    """

    def __init__(self, package: TensorRtPackage, plan: bytes, *, name: str, kernels: Path | None = None) -> None:
        trt = package.module
        self._package, self._name, self._kernels = package, name, kernels
        self._logger = package.logger(everything=False)
        try:
            self._runtime = trt.Runtime(self._logger)
        # pybind11 raises it where TensorRT itself returns nothing, as with a driver that is too old.
        except TypeError as error:
            raise self._error("TensorRT does not start", otherwise=ProviderMissing) from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._error("TensorRT does not accept the engine", otherwise=EngineInvalid)
        self._config: Any = self._runtime_config() if package.capabilities.runtime_config else None
        self._cache = None if self._config is None or kernels is None else self._runtime_cache(kernels)

    def scratch_bytes(self, profile: int) -> int:
        """Device memory for activations that a context of `profile` must be given; 0 where it allocates its own."""
        if not self._package.capabilities.given_memory:
            return 0
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(self, profile: int, stream: int) -> TensorRtContext:
        """A context for an optimisation profile.

        Raises:
            DeviceFailed: it cannot be created.
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
        """Save the kernels that were compiled, and free the engine."""
        if self._cache is not None and self._kernels is not None and self._engine is not None:
            blob = self._cache.serialize()
            # If they cannot be saved, they are compiled again next time. They are code, so nobody else may write them.
            with optional_writes("kernels are compiled again when the engine is loaded the next time"):
                self._kernels.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if blob is not None:
                    write_bytes(self._kernels, bytes(memoryview(blob)))
        self._cache = self._config = self._engine = self._runtime = None

    def _runtime_config(self) -> Any:  # noqa: ANN401
        trt, config = self._package.module, self._engine.create_runtime_config()
        if self._package.capabilities.given_memory:
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Each context has one shape. EAGER: its kernels are compiled before the first run returns, hence before
        # stage.py captures it; DISABLED: only stage.py captures.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return config

    def _runtime_cache(self, path: Path) -> Any:  # noqa: ANN401
        cache = self._config.create_runtime_cache()
        with contextlib.suppress(OSError):
            # TensorRT itself rejects what was compiled for another GPU, driver or version, and what is damaged. It then
            # compiles again, and `close` replaces the file.
            if path.is_file() and not cache.deserialize(path.read_bytes()):
                cache = self._config.create_runtime_cache()
        # No later error should be taken for this one.
        self._logger.errors.clear()
        self._config.set_runtime_cache(cache)
        return cache

    def _error(self, what: str, *, otherwise: type[DovitError]) -> DovitError:
        """`what` with what TensorRT logged about it; the log decides the class of the error."""
        logged = [text for message in self._logger.errors if (text := " ".join(message.split()))]
        self._logger.errors.clear()
        # "Serialization": the bytes are damaged or of another version, whatever else was logged before.
        words = next((line for line in logged if "Serialization" in line), logged[0] if logged else "it gave no reason")
        reason = f"{self._name}: {what}: {words[:SHOWN]}"
        codes = {int(code) for line in logged for code in CUDA_ERROR.findall(line)}
        if "Serialization" in words:
            return EngineInvalid(f"{reason}; build it again with: dovit build BUNDLE --rebuild")
        if codes & NO_DRIVER:
            return ProviderMissing(f"{reason}; an NVIDIA driver for this version is needed, check it with: nvidia-smi")
        if OUT_OF_MEMORY in codes or any("out of memory" in line.lower() for line in logged):
            return DeviceOutOfMemory(f"{reason}; end other programs that use the GPU, or take a smaller model")
        return otherwise(reason)


class TensorRtContext:
    """An execution context; `error` builds the error of a call that failed."""

    def __init__(self, context: Any, package: TensorRtPackage, error: Callable[[str], DovitError]) -> None:  # noqa: ANN401
        self._context, self._package, self._error = context, package, error
        self._allocators: list[Any] = []

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Fix the shape of an input whose size is open."""
        self._check(self._context.set_input_shape(name, shape), f"{name} cannot have shape {shape}")

    def give_scratch(self, address: int, nbytes: int) -> None:
        """Memory for activations; contexts that run one after the other on one stream may share it."""
        if self._package.capabilities.given_memory:
            self._context.set_device_memory(address, nbytes)

    def bind(self, name: str, address: int) -> None:
        """Set the address at which an input is read or an output is written."""
        self._check(self._context.set_tensor_address(name, address), f"{name} cannot be bound")

    def allocate_output(self, name: str, room: Callable[[int], int], shaped: Callable[[tuple[int, ...]], None]) -> None:
        """Let `room(nbytes)` return the address of an output whose size depends on the data.

        Args:
            shaped: called with the shape when it is known.
        """
        allocator = _output_allocator(self._package.module, room, shaped)
        # TensorRT keeps no reference to it.
        self._allocators.append(allocator)
        self._check(self._context.set_output_allocator(name, allocator), f"{name} takes no allocator")

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on `stream`."""
        self._check(self._context.execute_async_v3(stream), "TensorRT does not run")

    def capturable(self, stream: int) -> bool:
        """Whether a run can be captured as a CUDA graph; True where TensorRT cannot say: then it is tried."""
        return not self._package.capabilities.reports_capturable or bool(self._context.is_stream_capturable(stream))

    def free(self) -> None:
        """Free the context and its output allocators."""
        self._context = None
        self._allocators.clear()

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._error(what)


def _output_allocator(trt: Any, room: Callable[[int], int], shaped: Callable[[tuple[int, ...]], None]) -> Any:  # noqa: ANN401
    # Defined here, because its base class is that of the package in use.
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """TensorRT requests memory from it during a run, and reports the shape at the end."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return room(size)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return room(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ANN401
            shaped(tuple(shape))

    return Allocator()
