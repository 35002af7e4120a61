"""The C++ plugins' own enqueue, through `IPluginV3OneRuntime`: csrc/harness.cpp on a stand-in of the CUDA runtime.

By default against a stand-in of TensorRT's header, too; `TENSORRT_INCLUDE`, the folder of `NvInferRuntime.h`, names the
real one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc import harness_on_host
from tests.csrc.harness_on_host import HERE, built_harness

STAND_IN = HERE / "tensorrt_headers"
FEW = 33
"""Tokens at most: fibers that stand for a GPU's threads are slow, and more tokens take no other path in csrc/."""
THROUGH_PLUGIN, WITHOUT = "IPluginV3OneRuntime::enqueue", "dovit_enqueue (no TensorRT interface)"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile csrc/ for the CPU")


def real_headers() -> Path:
    """TensorRT's headers; skips the test where none are named."""
    named = os.environ.get("TENSORRT_INCLUDE")
    if not named:
        pytest.skip("TENSORRT_INCLUDE names no folder of TensorRT's headers, which cannot be part of this project")
    folder = Path(named).resolve()
    assert (folder / "NvInferRuntime.h").is_file(), f"TENSORRT_INCLUDE={named} has no NvInferRuntime.h"
    return folder


def run(harness: Path, library: Path, *sizes: int) -> subprocess.CompletedProcess[str]:
    words = [str(harness), str(library), *map(str, sizes)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_plugins_enqueue_is_equal_to_loops_on_the_host(tmp_path: Path) -> None:
    ran = run(*built_harness(tmp_path, tensorrt=STAND_IN), FEW)
    assert (ran.returncode, ran.stdout) == (0, f"121 of 121 cases equal, through {THROUGH_PLUGIN}\n"), ran.stderr
    usage = run(tmp_path / "harness_on_host", tmp_path / "harness_on_host.cpp")
    assert usage.returncode == 2 and "usage: harness LIBRARY [LARGEST]: " in usage.stderr


@pytest.mark.slow
def test_a_plugin_that_is_wrong_is_found(tmp_path: Path, monkeypatch) -> None:
    """What the plugins hand on is what the harness sees, not what it hands to the kernels itself."""
    wrong = tmp_path / "csrc"
    shutil.copytree(harness_on_host.CSRC, wrong, ignore=shutil.ignore_patterns("build"))
    source = (wrong / "token_plugins.cpp").read_text()
    right = "out[i] = tensor_from(output_descs[i], outputs[i])"
    assert right in source
    (wrong / "token_plugins.cpp").write_text(source.replace(right, right.replace("outputs[i]", "outputs[0]")))
    monkeypatch.setattr(harness_on_host, "CSRC", wrong)
    ran = run(*built_harness(tmp_path, tensorrt=STAND_IN), 1)
    assert ran.returncode == 1 and "differs: compaction" in ran.stdout


@pytest.mark.slow
def test_every_size(tmp_path: Path) -> None:
    ran = run(*built_harness(tmp_path, tensorrt=STAND_IN))
    assert (ran.returncode, ran.stdout) == (0, f"251 of 251 cases equal, through {THROUGH_PLUGIN}\n"), ran.stderr


@pytest.mark.slow
def test_without_tensorrts_interface(tmp_path: Path) -> None:
    ran = run(*built_harness(tmp_path, tensorrt=None), FEW)
    assert (ran.returncode, ran.stdout) == (0, f"121 of 121 cases equal, through {WITHOUT}\n"), ran.stderr


def test_against_the_headers_of_tensorrt(tmp_path: Path) -> None:
    ran = run(*built_harness(tmp_path, tensorrt=real_headers()))
    assert (ran.returncode, ran.stdout) == (0, f"251 of 251 cases equal, through {THROUGH_PLUGIN}\n"), ran.stderr
