"""What only a stand-in for the driver can show (tests/csrc/host_driver.c): a GPU that failed, and counts of calls.

`python -m tests.engines.cuda.stand_in_checks` runs it in a process of its own, whose libcuda.so.1 is the stand-in.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from dovit_deploy.engines.cuda.driver import nvidia_driver
from dovit_deploy.engines.cuda.memory import DeviceArray, opened_memory
from dovit_deploy.engines.plugins import kernels as token_kernels
from dovit_deploy.engines.plugins.library import plugin_creators
from dovit_deploy.engines.plugins.loaded import HeldKernels, current_kernels
from dovit_deploy.errors import DeviceFailed, ProviderMissing
from tests.engines.tensorrt.bindings import RTX, all_bindings, fake_module

ILLEGAL_ADDRESS = 700
PLUGINS_OF_A_SESSION = 200


def plugins_share_one_module(driver: ctypes.CDLL) -> None:
    """Hundreds of plugin objects, two sessions in one context; the module goes with the last of them."""
    for name in token_kernels.KERNELS:
        driver.host_driver_register(name.encode(), None, None, 0)
    with mock.patch.object(token_kernels, "compiled_kernels", lambda architecture: b"a cubin"):
        with pytest.raises(ProviderMissing, match="need a CUDA context, this thread has none"):
            HeldKernels()
        memory = opened_memory()
        first, second = HeldKernels(), HeldKernels()
        creator = plugin_creators(fake_module(all_bindings()[RTX], {"PluginFieldCollection": list}))[0]
        plugin = creator.create_plugin("layer", None, None)
        for _ in range(PLUGINS_OF_A_SESSION):
            plugin.attach_to_context(None).enqueue(
                *([SimpleNamespace(dims=(0, 4), type=np.dtype(np.float32)), SimpleNamespace(dims=(0,))], []),
                *([0, 0], [0], 0, memory.stream),
            )
        assert driver.host_driver_module_loads() == 1
        first.release()
        assert current_kernels() is current_kernels()
        assert driver.host_driver_module_loads() == 1
        second.release()
        assert driver.host_driver_live_modules() == 0
        HeldKernels().release()
        assert driver.host_driver_module_loads() == 2, "what was unloaded is loaded again"
        memory.close()
    assert driver.host_driver_live() == 0
    assert driver.host_driver_blocking_streams() == 0, "another thread's capture is not disturbed"


def closing_after_a_failure(driver: ctypes.CDLL) -> None:
    """Every call repeats the error; the context is given back all the same."""
    memory = opened_memory()
    block = memory.allocate(8)
    mark = memory.mark()
    driver.host_driver_fail(ILLEGAL_ADDRESS)
    with pytest.raises(DeviceFailed, match="the NVIDIA driver reports"):
        mark.wait()
    with pytest.raises(DeviceFailed):
        memory.copy(DeviceArray.of(block.address, (1,), np.int64), np.zeros(1, np.int64))
    block.free()
    memory.close()
    memory.close()
    assert driver.host_driver_contexts() == 0
    driver.host_driver_fail(0)


if __name__ == "__main__":
    stand_in = nvidia_driver()
    plugins_share_one_module(stand_in)
    closing_after_a_failure(stand_in)
    print("both hold")
