"""What is proved by separate programs: the C++ plugins' enqueue, and both packages for device memory.

Each runs in a process of its own, so that a crash on the device is a finding and stops nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dovit_deploy.engines.cuda.memory import MEMORIES
from gpu.result import Outcome, Undone
from gpu.section import Found, NotDone
from tests.paths import ROOT

NO_GPU = 2
"""Exit code of csrc/harness.cpp where it cannot run."""

StartProgram = Callable[..., "subprocess.CompletedProcess[str]"]
"""`subprocess.run`, or what stands for it in a test."""


def plugin_outcomes(
    compute_capability: str, *, seconds: float, headers: str | None = None, run: StartProgram = subprocess.run
) -> Iterator[Found]:
    """Build csrc's libraries and harness for this GPU, and let the harness run the plugins' own enqueue.

    Args:
        headers: folder of TensorRT's headers; without them the same work is called without TensorRT's interface.
    """
    missing = [tool for tool in ("make", "nvcc") if shutil.which(tool) is None]
    if missing:
        raise NotDone(f"{' and '.join(missing)} is not installed (CUDA toolkit)")
    with tempfile.TemporaryDirectory(prefix="dovit-") as folder:
        variables = [f"BUILD={folder}", f"ARCHS={compute_capability.replace('.', '')}"]
        # make runs in csrc/; a relative path is meant from here.
        variables += [f"TENSORRT_INCLUDE={Path(headers).absolute()}"] if headers else []
        built = _done(["make", "-C", str(ROOT / "csrc"), "plugins", "harness", *variables], seconds=seconds, run=run)
        if built is None or built.returncode:
            yield "plugin", Outcome(name="C++ plugins", ok=False, detail=f"not built: {_last_line(built)}")
            return
        library = Path(folder) / "libdovit_plugins.so"
        if not library.exists():
            library = Path(folder) / "libdovit_kernels.so"
            yield "undone", Undone(what="IPluginV3's enqueue", why="no TensorRT headers (TENSORRT_INCLUDE)")
        ran = _done([str(Path(folder) / "harness"), str(library)], seconds=seconds, run=run)
    if ran is not None and ran.returncode == NO_GPU:
        raise NotDone(_last_line(ran))
    yield "plugin", Outcome(name="C++ plugins", ok=ran is not None and not ran.returncode, detail=_last_line(ran))


def memory_outcomes(*, seconds: float, run: StartProgram = subprocess.run) -> Iterator[Found]:
    """Both packages for device memory against the promises of tests/engines/cuda/memory_contract.py."""
    for name in MEMORIES:
        ran = _done([sys.executable, "-m", "tests.engines.cuda.memory_contract", name], seconds=seconds, run=run)
        if ran is not None and ran.returncode == 0:
            yield "memory", Outcome(name=name, ok=True, detail=_last_line(ran))
        elif ran is not None and ("PackageMissing" in ran.stderr or "ProviderMissing" in ran.stderr):
            yield "undone", Undone(what=f"memory by {name}", why=_last_line(ran))
        else:
            yield "memory", Outcome(name=name, ok=False, detail=_last_line(ran))


def _done(command: Sequence[str], *, seconds: float, run: StartProgram) -> subprocess.CompletedProcess[str] | None:
    """The finished process; None if it took longer than `seconds`."""
    inherited = os.environ.get("PYTHONPATH")
    # In front: what else the path names, perhaps the packages themselves, is needed as well.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])}
    try:
        return run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None


def _last_line(done: subprocess.CompletedProcess[str] | None) -> str:
    if done is None:
        return "took too long"
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"left with code {done.returncode}"
