"""TensorRT engines as a backend: finds what `dovit build` made, checks that it may run, and runs it on the GPU.

The sidecar of an engine is compared with bundle, package and GPU, and its bytes with the sidecar, before TensorRT sees
any of it. Stages hand device memory to each other; the host reads only the count, through pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import (
    INDEX,
    ORDER,
    TOKENS,
    carried_from_outputs,
    stage_name,
    stage_number,
    tokens_output,
)
from dovit_deploy.engines.base import Array, Buffer, EngineOptions
from dovit_deploy.engines.cuda.memory import DEFAULT_MEMORY, DeviceArray, DeviceMemory, check_memory_name, opened_memory
from dovit_deploy.engines.plugins.library import compiled_library, registered_plugins
from dovit_deploy.engines.plugins.loaded import HeldKernels
from dovit_deploy.engines.square import MATRIX
from dovit_deploy.engines.tensorrt.context import TensorRtEngine
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, tensorrt_package
from dovit_deploy.engines.tensorrt.search import EngineSearch
from dovit_deploy.engines.tensorrt.stage import TensorRtStage
from dovit_deploy.engines.tensorrt.store import EngineCache, EngineSet, checked_plan
from dovit_deploy.errors import EngineInvalid, EngineMissing, EnvironmentProblem, ProviderMissing


@dataclass
class _Opened:
    """The engines of one bundle, and those of its stages that are loaded."""

    engines: EngineSet
    stages: dict[str, TensorRtStage] = field(default_factory=dict)


class TensorRtBackend:
    """Runs the engines of one package.

    A buffer is a `DeviceArray` where an engine wrote it, and the caller's NumPy array until an engine takes it. What an
    engine wrote stays unchanged until it runs again.

    Args:
        cuda_memory: key of `memory.MEMORIES`.
        trust_engine: also run engines that came with the bundle.
        cache: default: that of this user.
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
        self._kernels: HeldKernels | None = None
        """Of the Python plugins, from the first engine that calls them until the last engine is closed."""

    def load(self, bundle: Bundle, graph: str) -> TensorRtStage:
        """Load the engine of `graph`, and run it once in every bucket.

        Raises:
            EngineMissing: none was built.
            EngineInvalid: it does not fit the bundle, the package or the GPU, is damaged, or is not trusted.
            ProviderMissing: no driver, or no GPU.
            PackageMissing: what the engine's plugins or the memory need is not installed.
            DeviceOutOfMemory: it does not fit.
        """
        # Before a device is opened: what is missing or refused is reported on machines without a GPU, too.
        search = EngineSearch(bundle, self._package, self.precision, self._cache, trust=self._trust)
        opened = self._opened(bundle, search, graph)
        if graph not in opened.engines.records:
            raise EngineMissing(f"{opened.engines.folder} has no engine of {graph}; build it with: {search.build_line}")
        try:
            plan = checked_plan(opened.engines, graph)
            stage = self._stage(opened, graph, plan, closed=lambda: self._closed(bundle.path, graph))
            opened.stages[graph] = stage
            before = _stage_before(opened, graph)
            stage.warm_up(_sources(opened, graph), None if before is None else before.gate)
        except BaseException:
            # Also after Ctrl-C: the process may live on, and must not keep memory of the GPU.
            self._unload(bundle.path, graph)
            raise
        return stage

    def upload(self, array: Array) -> Buffer:
        # Not copied yet: the engine that takes it copies it into its own slot, so that its address never changes.
        return np.asarray(array)

    def download(self, buffer: Buffer) -> Array:
        """A copy on the host, through pinned memory; waits for all work enqueued so far."""
        if not isinstance(buffer, DeviceArray):
            return np.asarray(buffer)
        memory = self._device()
        # One buffer for all downloads, hence the copy below: pinning memory takes longer than copying.
        if self._staging.nbytes < buffer.nbytes:
            self._staging = memory.pinned(buffer.nbytes)
        host = self._staging[: buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)
        memory.copy(host, buffer)
        memory.mark().wait()
        if not buffer.shape:
            self._note_count(buffer, int(host))
        return host.copy()

    def narrow(self, buffer: Buffer, count: int) -> Buffer:
        """The first `count` entries; a bucket still reaches those behind them (`DeviceArray.room`)."""
        return buffer.narrow(count) if isinstance(buffer, DeviceArray) else buffer[:count]

    def _opened(self, bundle: Bundle, search: EngineSearch, graph: str) -> _Opened:
        """The engines of `bundle`, searched for once."""
        if bundle.path not in self._bundles:
            found = self._found(search)
            if graph in found[0].records:
                # Before a GPU is needed: damage is reported on machines without one, too.
                checked_plan(found[0], graph)
            # Entered before the device is opened, so that `_closed` closes it again if no engine fits this GPU.
            self._bundles[bundle.path] = _Opened(found[0])
            try:
                capability = self._device().device.compute_capability
                self._bundles[bundle.path] = _Opened(search.for_gpu(found, capability))
            except BaseException:
                self._closed(bundle.path, graph)
                raise
        return self._bundles[bundle.path]

    def _found(self, search: EngineSearch) -> list[EngineSet]:
        """`search.found()`; where nothing is found although the GPU could run nothing either, that is the error."""
        try:
            return search.found()
        except (EngineMissing, EngineInvalid):
            capability = self._capability_of_gpu()
            if capability is not None:
                self._package.check_gpu(capability)
            raise

    def _capability_of_gpu(self) -> str | None:
        """Its compute capability; None where there is no GPU, or no package that opens it."""
        opened_before = self._memory is not None
        try:
            return self._device().device.compute_capability
        except EnvironmentProblem:
            return None
        finally:
            if not opened_before:
                self._close_memory()

    def _stage(self, opened: _Opened, graph: str, plan: bytes, *, closed: Callable[[], None]) -> TensorRtStage:
        memory, record = self._device(), opened.engines.records[graph]
        if record.plugins is not None:
            if self._kernels is None and compiled_library() is None:
                # Before TensorRT sees the engine: it prints a plugin's errors, and says only that a run failed.
                self._kernels = HeldKernels()
            registered_plugins(self._package)
        kernels = self._cache.kernels_path(opened.engines.entry.key, graph, memory.device)
        engine = TensorRtEngine(self._package, plan, name=graph, kernels=kernels)
        return TensorRtStage(engine, record, memory, closed=closed)

    def _note_count(self, buffer: DeviceArray, value: int) -> None:
        """The host has read `value`; if it is a gate's count, the next stage may read it on the device."""
        for opened in self._bundles.values():
            for stage in opened.stages.values():
                if stage.gate is not None and stage.gate.count.address == buffer.address:
                    stage.gate.read = value

    def _device(self) -> DeviceMemory:
        """The device memory, opened when it is first needed, for the calling thread."""
        if self._memory is None:
            self._memory = self._open_memory(self._memory_name)
        else:
            self._memory.activate()
        return self._memory

    def _unload(self, path: Path, graph: str) -> None:
        """Free everything of an engine that could not be loaded."""
        stage = self._bundles[path].stages.get(graph)
        if stage is not None:
            stage.close()
        else:
            self._closed(path, graph)

    def _closed(self, path: Path, graph: str) -> None:
        """Called when an engine has closed; the last one closes the device memory."""
        opened = self._bundles.get(path)
        if opened is not None:
            opened.stages.pop(graph, None)
            if not opened.stages:
                del self._bundles[path]
        if not self._bundles:
            self._close_memory()

    def _close_memory(self) -> None:
        if self._kernels is not None:
            # Before the memory: with it goes the context in which they are loaded.
            self._kernels.release()
            self._kernels = None
        if self._memory is not None:
            self._staging = np.empty(0, np.uint8)
            self._memory.close()
            self._memory = None


def _stage_before(opened: _Opened, graph: str) -> TensorRtStage | None:
    """The loaded stage whose gate gives `graph` its tokens."""
    number = stage_number(graph)
    return opened.stages.get(stage_name(number - 1)) if number else None


def _sources(opened: _Opened, graph: str) -> dict[str, DeviceArray]:
    """The inputs that a stage will take from others, if the one before it is loaded: `tokens`, `order` as `index`, and
    what is carried."""
    number, before = stage_number(graph), _stage_before(opened, graph)
    if number is None or before is None or ORDER not in before.outputs:
        return {}
    sources = {TOKENS: before.outputs[tokens_output(number - 1)], INDEX: before.outputs[ORDER]}
    for earlier in range(number):
        # The last stage to give it counts.
        stage = opened.stages.get(stage_name(earlier))
        sources |= {} if stage is None else carried_from_outputs(stage.outputs)
    return sources


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
    # Now, although the memory is opened much later: a wrong flag should not be reported after a search for engines.
    check_memory_name(memory)
    package = tensorrt_package(engine)
    return TensorRtBackend(package, precision=precision, cuda_memory=memory, trust_engine=options.trust_engine)


def probe_tensorrt() -> str:
    """Copy a small matrix to the GPU and back, with TensorRT loaded."""
    return _probe("tensorrt")


def probe_tensorrt_rtx() -> str:
    """Copy a small matrix to the GPU and back, with TensorRT for RTX loaded."""
    return _probe("tensorrt-rtx")


def _probe(engine: str) -> str:
    package = tensorrt_package(engine)
    try:
        memory = opened_memory()
    except ProviderMissing as error:
        builds = "engines can be built here, not run" if package.capabilities.compute_capabilities else "no use"
        raise ProviderMissing(f"{package.version}, {builds}: {error}") from error
    # No engine is built, which takes minutes; what fails on real machines is the driver, and a copy shows that.
    block, back = memory.allocate(MATRIX.nbytes), np.zeros_like(MATRIX)
    array = DeviceArray.of(block.address, MATRIX.shape, MATRIX.dtype)
    memory.copy(array, MATRIX)
    memory.copy(back, array)
    memory.mark().wait()
    memory.close()
    package.check_gpu(memory.device.compute_capability)
    if not np.array_equal(back, MATRIX):
        raise ArithmeticError(f"the GPU returned {back.tolist()} for {MATRIX.tolist()}")
    return f"{package.version}, {memory.device.name} (compute capability {memory.device.compute_capability})"
