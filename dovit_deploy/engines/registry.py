"""Which engines there are, one line each, named by their modules: no file names a family and an engine."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from dovit_deploy import packages
from dovit_deploy.engines.base import Backend
from dovit_deploy.errors import UsageError


@dataclass(frozen=True)
class EngineEntry:
    """A runtime: the module that defines `backend(*, precision, threads)`, the package it needs, its precisions."""

    module: str
    package: str
    precisions: tuple[str, ...]
    purpose: str
    install: str | None = None
    """The line that installs it, where that is not the package's own."""


CUDA_INSTALL = "pip uninstall -y onnxruntime && pip install 'dovit-deploy[gpu]'"
"""`onnxruntime` and `onnxruntime-gpu` unpack into one folder: never both."""

ENGINES = {
    "onnxruntime": EngineEntry(
        "dovit_deploy.engines.onnxruntime_cpu", "onnxruntime", ("fp32",), "ONNX Runtime on the CPU"
    ),
    "cuda": EngineEntry(
        "dovit_deploy.engines.onnxruntime_cuda",
        "onnxruntime",
        ("fp32", "fp16"),
        "ONNX Runtime on an NVIDIA GPU",
        CUDA_INSTALL,
    ),
    "torch": EngineEntry("dovit_deploy.models.eager", "torch", ("fp32",), "PyTorch, the reference"),
}


def backend_from_name(engine: str, *, precision: str = "fp32", threads: int | None = None) -> Backend:
    """The backend called `engine`.

    Raises:
        UsageError: unknown engine or precision, or fewer than one thread.
        PackageMissing: the engine's package is not installed.
    """
    entry = ENGINES.get(engine)
    if entry is None:
        raise UsageError(f"unknown engine '{engine}'; there are: {', '.join(ENGINES)}")
    if precision not in entry.precisions:
        raise UsageError(
            f"engine {engine} does not run precision '{precision}'; it runs: {', '.join(entry.precisions)}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads: {threads} given, at least 1 is needed")
    packages.load(entry.package, install=entry.install)
    backend: Backend = importlib.import_module(entry.module).backend(precision=precision, threads=threads)
    return backend
