"""The GPU of this machine, asked of NVIDIA's driver itself: no package is needed for it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from dovit_deploy.errors import ProviderMissing

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class GpuDevice:
    """A GPU: its name and compute capability ("8.6")."""

    name: str
    compute_capability: str


def gpu_device(number: int = 0) -> GpuDevice:
    """The GPU called `number` by the driver.

    Raises:
        ProviderMissing: no driver, or no such GPU.
    """
    driver, device = nvidia_driver(), ctypes.c_int()
    _check(driver.cuInit(0), "the driver does not start")
    _check(driver.cuDeviceGet(ctypes.byref(device), number), f"no GPU {number}")
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGetName(name, len(name), device), "the GPU does not tell its name")
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "its capability is unknown")
        capability.append(str(value.value))
    return GpuDevice(name.value.decode(errors="replace"), ".".join(capability))


def nvidia_driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        ProviderMissing: there is none.
    """
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ProviderMissing(f"no NVIDIA driver here ({DRIVER} cannot be loaded); a GPU is needed") from error


def _check(status: int, what: str) -> None:
    if status:
        raise ProviderMissing(f"NVIDIA driver: {what} (error {status}); check it with: nvidia-smi")
