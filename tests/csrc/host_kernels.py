"""The CUDA kernels run on the CPU: compiled by g++, launched as the CUDA driver would, on NumPy's memory."""

from __future__ import annotations

import ctypes
import enum
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from tests.paths import ROOT

HERE = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
KERNELS = ROOT / "dovit_deploy" / "engines" / "plugins"


def host_library(folder: Path) -> ctypes.CDLL:
    """`kernels_on_host.cpp` as a library."""
    library = folder / "kernels_on_host.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    source = str(HERE / "kernels_on_host.cpp")
    subprocess.run(["g++", *flags, f"-I{CSRC}", f"-I{KERNELS}", f"-I{HERE}", source, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_CONTEXT = 201


@dataclass
class HostDriver:
    """What `TokenKernels` uses of `cuda.bindings.driver`, with the CPU for a device."""

    library: ctypes.CDLL
    streams: list[int] = field(default_factory=list)
    fails: bool = False
    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )

    def cuMemcpyDtoDAsync(self, target: int, source: int, count: int, stream: int):
        self.streams.append(stream)
        ctypes.memmove(target, source, count)
        return (CUresult.CUDA_SUCCESS,)

    def cuLaunchKernel(self, function: str, *shape_and_stream: int | tuple[tuple[int, ...], tuple[type, ...]]):
        blocks, rows, layers, width, height, depth, shared, stream, arguments, extra = shape_and_stream
        assert (rows, layers, depth, shared, extra) == (1, 1, 1, 0, 0)
        assert width * height <= 1024
        self.streams.append(stream)
        if self.fails:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        values = [kind(value) for value, kind in zip(*arguments, strict=True)]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.library.host_launch(function.encode(), blocks, width, height, addresses)
        return (CUresult.CUDA_SUCCESS,)
