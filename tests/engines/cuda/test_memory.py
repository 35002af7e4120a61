"""Device memory: one contract for the fake and for both real packages, whose own code runs here on a stand-in driver.

Where there is a GPU the real packages are tried on it; elsewhere tests/csrc/host_driver.c stands for the driver, which
shows that the calls are the right ones with the right arguments, and nothing about a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dovit_deploy.engines.cuda.driver import GpuDevice, captured, gpu_device
from dovit_deploy.engines.cuda.memory import MEMORIES, DeviceArray, opened_memory
from dovit_deploy.errors import DeviceFailed, PackageMissing, ProviderMissing, UsageError
from tests.csrc.stand_in import stand_in_driver
from tests.engines.cuda.fake_device import FakeMemory
from tests.engines.cuda.memory_contract import CHECKS
from tests.paths import ROOT

PACKAGES = {"cuda-core": "cuda.bindings", "pycuda": "pycuda"}


def installed(name: str) -> bool:
    package = PACKAGES[name]
    return importlib.util.find_spec(package.partition(".")[0]) is not None and (
        importlib.util.find_spec(package) is not None
    )


def has_gpu() -> bool:
    try:
        gpu_device()
    except ProviderMissing:
        return False
    return True


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_fake_keeps_the_contract(check) -> None:
    memory = FakeMemory()
    check(memory)
    memory.close()
    assert not memory.live and not memory.launches


@pytest.fixture(scope="module")
def host_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `libcuda.so.1` that does its work on the CPU."""
    return stand_in_driver(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("name", list(MEMORIES))
def test_a_real_package_keeps_the_contract(name: str, request: pytest.FixtureRequest) -> None:
    if not installed(name):
        pytest.skip(f"{PACKAGES[name]} is not installed")
    environment = dict(os.environ)
    if not has_gpu():
        environment["LD_LIBRARY_PATH"] = str(request.getfixturevalue("host_driver"))
    run = subprocess.run(
        [sys.executable, "-m", "tests.engines.cuda.memory_contract", name],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"{len(CHECKS)} promises kept by {name}" in run.stdout


@pytest.mark.skipif(not installed("cuda-core"), reason="cuda.bindings is not installed")
def test_on_the_stand_in_alone(host_driver: Path) -> None:
    """Also where there is a GPU: stand_in_checks.py counts calls and lets them fail."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.engines.cuda.stand_in_checks"],
        env={**os.environ, "LD_LIBRARY_PATH": str(host_driver)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "both hold\n"), run.stderr[-3000:]


def test_a_driver_that_is_too_old_for_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings raises RuntimeError where a function is missing."""

    def missing(flags: int) -> None:
        raise RuntimeError('Function "cuInit" not found\nmore')

    module = importlib.import_module(MEMORIES["cuda-core"])
    monkeypatch.setattr(module, "gpu_device", lambda number: GpuDevice("a GPU", "8.6"))
    monkeypatch.setattr(module.packages, "load", lambda name: SimpleNamespace(cuInit=missing))
    with pytest.raises(ProviderMissing, match="cannot use the NVIDIA driver: Function") as caught:
        opened_memory("cuda-core")
    assert caught.value.exit_code == 5 and len(str(caught.value).splitlines()) == 1


def test_a_driver_that_is_too_old_for_graphs() -> None:
    old = SimpleNamespace(cuStreamBeginCapture_v2=None, cuStreamEndCapture=None)
    with pytest.raises(DeviceFailed, match="driver is too old, it has no cuGraphInstantiateWithFlags"):
        captured(old, 1, lambda: None)


@pytest.mark.parametrize("name", list(MEMORIES))
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_driver(name: str) -> None:
    """Whether or not the package is installed, since installing it would not help."""
    with pytest.raises(ProviderMissing, match="no NVIDIA driver here") as caught:
        opened_memory(name)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(("name", "line"), [("cuda-core", "cuda-bindings"), ("pycuda", "'dovit-deploy.pycuda.'")])
def test_without_the_package(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(MEMORIES[name])
    monkeypatch.setattr(module, "gpu_device", lambda number: GpuDevice("a GPU", "8.6"))
    monkeypatch.setitem(sys.modules, {"cuda-core": "cuda.bindings.driver", "pycuda": "pycuda.driver"}[name], None)
    with pytest.raises(PackageMissing, match=f"pip install {line}") as caught:
        opened_memory(name)
    assert caught.value.exit_code == 5


def test_a_memory_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="'cupy' given; there are: cuda-core, pycuda"):
        opened_memory("cupy")


def test_a_narrowed_array_has_no_more_than_its_room() -> None:
    array = DeviceArray.of(1024, (10, 2), np.int64)
    assert array.narrow(4).narrow(10) == array
    for count in (-1, 11):
        with pytest.raises(ValueError, match=f"{count} of 10 entries"):
            array.narrow(count)


def test_the_fake_shows_who_reads_too_early() -> None:
    memory = FakeMemory()
    block = memory.allocate(8)
    memory.copy(DeviceArray.of(block.address, (1,), np.int64), np.asarray([7]))
    host = np.zeros(1, np.int64)
    memory.copy(host, DeviceArray.of(block.address, (1,), np.int64))
    assert host[0] == 0
    memory.mark().wait()
    assert host[0] == 7


def test_the_fake_refuses_addresses_outside_of_its_memory() -> None:
    memory = FakeMemory()
    stray = (ctypes.c_uint8 * 8)()
    memory.copy(np.zeros(8, np.uint8), DeviceArray.of(ctypes.addressof(stray), (8,), np.uint8))
    with pytest.raises(AssertionError, match="outside of all memory"):
        memory.mark().wait()
