"""csrc/ as a whole on the CPU: launchers, enqueue, plugins and harness, compiled by g++ with a stand-in CUDA runtime.

The sources are those that nvcc compiles. Only the syntax of a launch, which g++ does not know, is written otherwise:
`kernel<<<blocks, block, shared, stream>>>(...)` becomes a call of tests/csrc/cuda_on_host.h.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.csrc.host_kernels import CSRC, HERE, KERNELS

LAUNCH = re.compile(r"(\w+)<<<([^>]*?)>>>\(")
STANDARD = "-std=c++20"
"""C++17 has no `dim3(width, rows)` for the plain struct of cuda_on_host.h."""
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def built_harness(folder: Path, *, tensorrt: Path | None) -> tuple[Path, Path]:
    """Compile the harness and a library for it into `folder`.

    Args:
        tensorrt: the folder of `NvInferRuntime.h`; None: the library has no plugins.

    Returns:
        harness, library
    """
    source = (CSRC / "token_kernels.cu").read_text()
    plain, launches = LAUNCH.subn(r"host::kernel_call(\1, \2)(", source)
    assert launches >= 4 and "<<<" not in plain, "a launch in another form"
    kernels = folder / "token_kernels_on_host.cpp"
    kernels.write_text(f'#include "cuda_on_host.h"\n{plain}')
    runtime = str(HERE / "runtime_on_host.cpp")
    sources = [str(kernels), str(CSRC / "token_enqueue.cpp"), runtime]
    tail = []
    if tensorrt is not None:
        sources.append(str(CSRC / "token_plugins.cpp"))
        # As csrc/Makefile has them: the headers of TensorRT are not ours to warn about.
        tail = ["-Wno-deprecated-declarations", "-Wno-unused-parameter", "-isystem", str(tensorrt)]
    library, harness = folder / "library_on_host.so", folder / "harness_on_host"
    folders = [f"-I{path}" for path in (CSRC, KERNELS, HERE, HERE / "cuda_headers")]
    compiler = ["g++", STANDARD, "-O1", *WARNINGS, *folders]
    subprocess.run([*compiler, "-shared", "-fPIC", *sources, *tail, "-o", str(library)], check=True)
    subprocess.run([*compiler, str(CSRC / "harness.cpp"), runtime, "-ldl", "-o", str(harness)], check=True)
    return harness, library
