"""Which engines are there? One entry each, with the module named as text: it is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from dovit_deploy import packages
from dovit_deploy.engines.base import NONE_GIVEN, Backend, EngineOptions
from dovit_deploy.errors import UsageError


@dataclass(frozen=True)
class EngineEntry:
    """A runtime: the function that makes its backend, the package it needs, its precisions."""

    module: str
    """Module, with `:function` where that is not `backend`; called with `precision`, `threads`, perhaps `options`."""
    package: str
    precisions: tuple[str, ...]
    """The first is the default."""
    purpose: str
    install: str | None = None
    """The line that installs it, where it is not that of the package."""
    options: tuple[str, ...] = ()
    """Fields of `EngineOptions` that it understands."""


TENSORRT_OPTIONS = ("cuda_memory", "trust_engine")

CUDA_INSTALL = "pip uninstall -y onnxruntime && pip install 'dovit-deploy[gpu]'"
"""`onnxruntime` and `onnxruntime-gpu` install into the same folder: never both."""

ENGINES = {
    "onnxruntime": EngineEntry("dovit_deploy.engines.onnxruntime", "onnxruntime", ("fp32",), "ONNX Runtime on the CPU"),
    # The same module as above, from another distribution: only the engine itself can say whether it has CUDA.
    "cuda": EngineEntry(
        "dovit_deploy.engines.onnxruntime_cuda",
        "onnxruntime",
        ("fp32", "fp16"),
        "ONNX Runtime on an NVIDIA GPU",
        CUDA_INSTALL,
    ),
    "torch": EngineEntry("dovit_deploy.families.eager", "torch", ("fp32",), "PyTorch, the reference"),
    "tensorrt-rtx": EngineEntry(
        "dovit_deploy.engines.tensorrt.run:tensorrt_rtx",
        *("tensorrt_rtx", ("fp16", "fp32"), "TensorRT for RTX, on NVIDIA GPUs"),
        options=TENSORRT_OPTIONS,
    ),
    "tensorrt": EngineEntry(
        "dovit_deploy.engines.tensorrt.run:tensorrt",
        *("tensorrt", ("fp16", "fp32"), "TensorRT, on NVIDIA GPUs"),
        options=TENSORRT_OPTIONS,
    ),
}


def options_for(engine: str, given: EngineOptions, *, among: Sequence[str]) -> EngineOptions:
    """Those of the options, given for several engines at once, that `engine` understands.

    Raises:
        UsageError: none of the engines `among` which they were given understands one of them.
    """
    # One option may be for one of several engines; only an option that none of them understands is a mistake.
    for name in given.given():
        if not any(name in ENGINES[other].options for other in among):
            _refuse(name, engine)
    own = {name: value for name, value in given.given().items() if name in ENGINES[engine].options}
    return EngineOptions(**own)


def backend_from_name(
    engine: str,
    *,
    precision: str | None = None,
    threads: int | None = None,
    options: EngineOptions = NONE_GIVEN,
) -> Backend:
    """The backend called `engine`.

    Args:
        precision: one of the engine's; None: its first.

    Raises:
        UsageError: unknown engine or precision, an option that the engine does not understand, or less than one thread.
        PackageMissing: the engine's package is not installed.
        EnvironmentProblem: it is installed but cannot be used.
    """
    entry = ENGINES.get(engine)
    if entry is None:
        raise UsageError(f"unknown engine '{engine}'; there are: {', '.join(ENGINES)}")
    if precision is not None and precision not in entry.precisions:
        raise UsageError(
            f"engine {engine} does not run precision '{precision}'; it runs: {', '.join(entry.precisions)}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads: {threads} given, at least 1 is needed")
    for name in options.given():
        if name not in entry.options:
            _refuse(name, engine)
    # First the package: its error names the line that installs it for this engine.
    packages.load(entry.package, install=entry.install)
    module, _, function = entry.module.partition(":")
    make = getattr(importlib.import_module(module), function or "backend")
    extra = {"options": options} if entry.options else {}
    backend: Backend = make(precision=precision or entry.precisions[0], threads=threads, **extra)
    return backend


def _refuse(option: str, engine: str) -> NoReturn:
    takers = ", ".join(name for name, entry in ENGINES.items() if option in entry.options)
    raise UsageError(f"--{option.replace('_', '-')} means nothing to engine {engine}; it is for: {takers}")
