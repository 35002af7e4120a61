"""The token kernels from Python: compiled by NVRTC for one architecture, launched through the CUDA driver.

`make plugins` compiles the same source (token_kernels.cuh) and launches it with the same shapes of blocks and grids
(csrc/token_shapes.h). Addresses are device addresses as integers; a call only enqueues work on `stream`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem, ProviderMissing

UNITS = (16, 4, 2, 1)
"""Bytes that a thread moves at once."""
ROW_THREADS = 256
"""Threads of a block of the row kernels; kRowThreads of csrc/token_shapes.h."""
COMPACT_THREADS = 1024
"""Threads of a block of the compaction; kCompactThreads of token_kernels.cuh."""
COMPACT_TILE = 4096
"""Entries of a mask that one block of the compaction processes; kCompactTile of token_kernels.cuh."""
KERNELS = (
    *(f"dovit_{work}_rows_{unit}" for work in ("gather", "scatter") for unit in UNITS),
    *("dovit_compact_1", "dovit_compact_8"),
)

_ADDRESS, _LONG = ctypes.c_void_p, ctypes.c_longlong
Arguments = tuple[tuple[Any, int], ...]


def kernel_source() -> str:
    """The CUDA source, which is installed beside this file."""
    return Path(__file__).with_name("token_kernels.cuh").read_text()


@functools.cache
def compiled_kernels(architecture: str) -> bytes:
    """The kernels as a cubin for `architecture` ("sm_90"); needs no GPU and no driver.

    Raises:
        PackageMissing, EnvironmentProblem: see `compiled_cubin`.
    """
    return compiled_cubin(kernel_source(), "token_kernels", architecture)


def compiled_cubin(source: str, name: str, architecture: str) -> bytes:
    """CUDA source, which includes nothing, as a cubin for `architecture`; needs no GPU and no driver.

    Raises:
        PackageMissing: cuda-bindings is not installed.
        EnvironmentProblem: NVRTC is missing, or refuses the architecture.
    """
    nvrtc = packages.load("cuda.bindings.nvrtc")
    # For the very architecture: a driver refuses PTX of a newer NVRTC, but not a cubin of its own architecture.
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    try:
        created = nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, None, None)
    # cuda-bindings raises this where it finds no NVRTC library.
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"NVRTC, which compiles the CUDA kernels, cannot be loaded ({_first_line(error)}); "
            "install it with: pip install nvidia-cuda-nvrtc"
        ) from error
    program = _nvrtc_value(nvrtc, created)
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EnvironmentProblem(
            f"NVRTC {_version(nvrtc)} does not compile the CUDA kernels ({name}) for {architecture}: {status.name}"
        )
    # cuda-bindings writes into the bytes object that it is given.
    cubin = bytes(_nvrtc_value(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
    _nvrtc_value(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
    _nvrtc_value(nvrtc, nvrtc.nvrtcDestroyProgram(program))
    return cubin


@dataclass(frozen=True)
class TokenKernels:
    """The kernels, loaded into the current context of one GPU."""

    driver: Any
    """The module `cuda.bindings.driver`, or one that behaves like it."""
    functions: Mapping[str, Any]
    module: Any = None
    """What `unload` unloads; None: nothing."""

    @classmethod
    def on_current_device(cls) -> TokenKernels:
        """Compile for the device of the current CUDA context, and load.

        Raises:
            PackageMissing: cuda-bindings is not installed.
            ProviderMissing: there is no NVIDIA driver, or no current context.
            EnvironmentProblem: the kernels cannot be compiled.
        """
        driver = packages.load("cuda.bindings.driver")
        current_context()
        device = _driver_value(driver, driver.cuCtxGetDevice())
        attributes = driver.CUdevice_attribute
        major, minor = (
            _driver_value(driver, driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        module = _driver_value(driver, driver.cuModuleLoadData(compiled_kernels(f"sm_{major}{minor}")))
        names = {name: _driver_value(driver, driver.cuModuleGetFunction(module, name.encode())) for name in KERNELS}
        return cls(driver, names, module)

    def unload(self) -> None:
        """Unload them, in their context; unchecked, since after an error that stays nothing can be."""
        if self.module is not None:
            self.driver.cuModuleUnload(self.module)

    def gather(
        self, tokens: int, index: int, values: int, *, total: int, kept: int, row_bytes: int, stream: int
    ) -> None:
        """`values` (kept, C) = rows `index` (kept,) int64 of `tokens` (total, C); a row is `row_bytes` bytes long."""
        if kept and row_bytes:
            unit = unit_bytes(tokens, values, row_bytes)
            grid, block = row_grid(row_bytes // unit, kept)
            arguments = _arguments((tokens, index, values), (total, kept, row_bytes // unit))
            self._launch(f"dovit_gather_rows_{unit}", grid, block, arguments, stream)

    def scatter(
        self,
        tokens: int,
        index: int,
        values: int,
        output: int,
        *,
        total: int,
        kept: int,
        row_bytes: int,
        stream: int,
        valid: int = 0,
    ) -> None:
        """`output` (total, C) = `tokens` with rows `index` (kept,) int64, without repetition, replaced by `values`.

        `output` may be `tokens` itself: then only those rows are written. `valid`: address of () int64, the number of
        entries of `index` that count, the others being padding; 0: all of them.
        """
        if output != tokens and total * row_bytes:
            _driver_value(self.driver, self.driver.cuMemcpyDtoDAsync(output, tokens, total * row_bytes, stream))
        if not (kept and row_bytes):
            return
        unit = unit_bytes(values, output, row_bytes)
        grid, block = row_grid(row_bytes // unit, kept)
        numbers = (total, kept, row_bytes // unit)
        arguments = _arguments((index, values, output, valid), numbers)
        self._launch(f"dovit_scatter_rows_{unit}", grid, block, arguments, stream)

    def compact(self, keep: int, order: int, count: int, *, mask_bytes: int, total: int, stream: int) -> None:
        """`order` (total,) and `count` () int64 of the mask `keep` (total,), whose entries are 1 or 8 bytes long."""
        self._compact((keep, order, count, 0), mask_bytes, total, stream)

    def compact_index(self, keep: int, index: int, size: int, *, mask_bytes: int, total: int, stream: int) -> None:
        """Only the kept positions, in `index` with room for `total` of them, and their number: `size` () int32."""
        self._compact((keep, index, 0, size), mask_bytes, total, stream)

    def _compact(self, addresses: tuple[int, ...], mask_bytes: int, total: int, stream: int) -> None:
        # With no tokens one block still writes the count.
        grid = max(1, -(-total // COMPACT_TILE))
        arguments = _arguments(addresses, (total,))
        self._launch(f"dovit_compact_{mask_bytes}", grid, (COMPACT_THREADS, 1), arguments, stream)

    def _launch(self, name: str, grid: int, block: tuple[int, int], arguments: Arguments, stream: int) -> None:
        values = tuple(value for _, value in arguments)
        types = tuple(kind for kind, _ in arguments)
        launched = self.driver.cuLaunchKernel(
            self.functions[name], grid, 1, 1, block[0], block[1], 1, 0, stream, (values, types), 0
        )
        _driver_value(self.driver, launched)


def current_context() -> int:
    """The address of the calling thread's CUDA context.

    Raises:
        PackageMissing: cuda-bindings is not installed.
        ProviderMissing: there is no NVIDIA driver, or no current context.
    """
    driver = packages.load("cuda.bindings.driver")
    try:
        context = int(_driver_value(driver, driver.cuCtxGetCurrent()))
    # cuda-bindings raises this where it finds no driver.
    except RuntimeError as error:
        raise ProviderMissing(
            f"the token kernels need an NVIDIA GPU and its driver ({_first_line(error)}); "
            "build the engines without plugins, or run where there is a GPU"
        ) from error
    if not context:
        raise ProviderMissing("the token kernels need a CUDA context, this thread has none")
    return context


def unit_bytes(first: int, second: int, row_bytes: int) -> int:
    """The largest unit that divides a row and both addresses."""
    return next(unit for unit in UNITS if (first | second | row_bytes) % unit == 0)


def row_grid(units: int, rows: int) -> tuple[int, tuple[int, int]]:
    """Number of blocks, and a block's threads (along a row, rows), for `rows` rows of `units` units.

    Takes the widest of 128, 64, ... threads along a row that leaves few of them idle.
    """
    best, least = 1, units
    for width in (2, 4, 8, 16, 32, 64, 128):
        used = -(-units // width) * width
        # Idle threads up to an eighth cost less than a narrower row.
        if used - units <= units // 8 or used <= least:
            best, least = width, used
    height = ROW_THREADS // best
    return -(-rows // height), (best, height)


def _arguments(addresses: tuple[int, ...], numbers: tuple[int, ...]) -> Arguments:
    return (*((_ADDRESS, address) for address in addresses), *((_LONG, number) for number in numbers))


def _driver_value(driver: Any, answer: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """The value of a driver call that returned `answer`, a status and perhaps a value."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ProviderMissing(
            f"the CUDA driver refused the token kernels: {status.name}; a driver for the CUDA of the installed "
            "nvidia-cuda-nvrtc, or a later one, is needed"
        )
    return values[0] if values else None


def _nvrtc_value(nvrtc: Any, answer: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """The value of a compiler call that returned `answer`, a status and perhaps a value."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EnvironmentProblem(f"NVRTC {_version(nvrtc)} failed: {status.name}")
    return values[0] if values else None


def _version(nvrtc: Any) -> str:  # noqa: ANN401
    return ".".join(map(str, nvrtc.nvrtcVersion()[1:]))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
