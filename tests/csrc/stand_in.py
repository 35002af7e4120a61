"""The stand-in for NVIDIA's driver, compiled: a folder with a `libcuda.so.1` that does its work on the CPU.

The library is found by its name, so whoever uses it runs in a process of its own whose LD_LIBRARY_PATH is this folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "host_driver.c", HERE / "host_graphs.h")


def stand_in_driver(folder: Path) -> Path:
    """Compile the driver into `folder`; skips the test where there is no compiler."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("needs gcc and nm to make a stand-in for the driver")
    sources = [str(SOURCES[0])]
    if importlib.util.find_spec("pycuda") is not None:
        (folder / "rest.c").write_text(refused_calls())
        sources.append(str(folder / "rest.c"))
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, *sources, "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    return folder


def select_library(folder: Path) -> Path:
    """The selecting kernel of benchmarks/gpu, compiled for the stand-in driver in the same folder."""
    library = folder / "select_on_host.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{ROOT / 'benchmarks' / 'gpu'}"]
    subprocess.run(["g++", *flags, str(HERE / "select_on_host.cpp"), "-o", str(library)], check=True)
    return library


def refused_calls() -> str:
    """Functions that PyCUDA links and these tests never call; they answer "not supported"."""
    folders = importlib.util.find_spec("pycuda").submodule_search_locations  # type: ignore[union-attr]
    library = next(path for folder in folders or () for path in Path(folder).glob("_driver*.so"))
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines() if line.split()[-1].startswith("cu")}
    own = "".join(source.read_text() for source in SOURCES)
    return "".join(
        f"int {name}(void);\nint {name}(void) {{ return 801; }}\n" for name in names if f" {name}(" not in own
    )
