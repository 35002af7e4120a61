"""Which engines are there? One entry each, with its module named as text: it is imported only when it is used.

Everything that names engines asks here: `--engine` and its help, lists in errors, `doctor` and its probes. A package of
its own adds an engine through the entry point group `dovit.engines`, whose entries are `EngineEntry` objects.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem, UsageError

# Only for types: `--help` reads this table, and must not wait for NumPy.
if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from dovit_deploy.engines.base import Backend, EngineOptions

GROUP = "dovit.engines"
"""Entry points of engines that other distributions bring."""


@dataclass(frozen=True)
class EngineEntry:
    """A runtime: where its code is, the packages that it needs, its precisions."""

    module: str
    """Has the two functions below."""
    packages: tuple[str, ...]
    """Keys of `packages.OPTIONAL`: the first is loaded before the module, others by the module when it needs them."""
    precisions: tuple[str, ...]
    """The first is the default."""
    purpose: str
    install: str | None = None
    """The line that installs it, where it is not that of its packages."""
    options: tuple[str, ...] = ()
    """Fields of `EngineOptions` that it understands."""
    on_gpu: bool = False
    concurrent: bool = False
    """Several threads may run one of its engines at once; its backend is called with `callers`, too."""
    backend: str = "backend"
    """Makes its backend; called with `precision` and `threads`, and `options` where it understands any."""
    probe: str = "probe"
    """Computes something small, or fails as the engine fails; returns what was found, with the version."""


TENSORRT_OPTIONS = ("cuda_memory", "trust_engine")

CUDA_INSTALL = "pip uninstall -y onnxruntime && pip install 'dovit-deploy[gpu]'"
"""`onnxruntime` and `onnxruntime-gpu` install into the same folder: never both."""

ENGINES = {
    "onnxruntime": EngineEntry(
        "dovit_deploy.engines.onnxruntime",
        *(("onnxruntime",), ("fp32", "int8"), "ONNX Runtime on the CPU"),
        concurrent=True,
    ),
    "openvino": EngineEntry(
        "dovit_deploy.engines.openvino",
        *(("openvino", "onnx_ir"), ("fp32", "bf16", "int8"), "OpenVINO on the CPU"),
        concurrent=True,
    ),
    # The module of onnxruntime from another distribution: only the engine itself can say whether it has CUDA.
    "cuda": EngineEntry(
        "dovit_deploy.engines.onnxruntime_cuda",
        *(("onnxruntime",), ("fp32", "fp16"), "ONNX Runtime on an NVIDIA GPU"),
        install=CUDA_INSTALL,
        on_gpu=True,
    ),
    "torch": EngineEntry("dovit_deploy.families.eager", ("torch",), ("fp32",), "PyTorch, the reference"),
    "tensorrt-rtx": EngineEntry(
        "dovit_deploy.engines.tensorrt.run",
        *(("tensorrt_rtx", "cuda.bindings.driver"), ("fp16", "fp32"), "TensorRT for RTX, on NVIDIA GPUs"),
        options=TENSORRT_OPTIONS,
        on_gpu=True,
        backend="tensorrt_rtx",
        probe="probe_tensorrt_rtx",
    ),
    "tensorrt": EngineEntry(
        "dovit_deploy.engines.tensorrt.run",
        *(("tensorrt", "cuda.bindings.driver"), ("fp16", "fp32"), "TensorRT, on NVIDIA GPUs"),
        options=TENSORRT_OPTIONS,
        on_gpu=True,
        backend="tensorrt",
        probe="probe_tensorrt",
    ),
}
"""Our own, in the order in which they are listed; the first is the default."""

AUTO = "auto"
"""What `run` is told instead of an engine: the fastest of `AUTOMATIC` (`runtime/auto.py`)."""
AUTOMATIC = ("onnxruntime", "openvino", "cuda")
"""Those that run a bundle as it is, with nothing built before; the first is what the others must beat."""


def engine_names() -> tuple[str, ...]:
    """All engines, our own first; those of other distributions are not imported."""
    return tuple(dict.fromkeys((*ENGINES, *(found.name for found in _entry_points()))))


def engine_entry(name: str) -> EngineEntry:
    """The engine called `name`.

    Raises:
        UsageError: there is none.
        EnvironmentProblem: the distribution that brings it does not load.
    """
    if not isinstance(name, str):
        raise UsageError(f"engine: {type(name).__name__} given, a name is needed: {', '.join(ENGINES)}")
    # Another distribution's engine of the same name never replaces one of ours.
    if name in ENGINES:
        return ENGINES[name]
    for found in _entry_points():
        if found.name == name:
            return _loaded(found)
    raise UsageError(f"unknown engine '{name}'; there are: {', '.join(engine_names())}")


def _entry_points() -> tuple[EntryPoint, ...]:
    # Not at the top: it takes longer to import than all else that `--help` needs.
    import importlib.metadata

    return tuple(importlib.metadata.entry_points(group=GROUP))


def _loaded(found: EntryPoint) -> EngineEntry:
    name = found.dist.name if found.dist is not None else found.value
    try:
        entry = found.load()
    except (ImportError, AttributeError) as error:
        raise EnvironmentProblem(
            f"engine {found.name} of '{name}' does not load: {error}; reinstall or remove {name}"
        ) from error
    if not isinstance(entry, EngineEntry):
        raise EnvironmentProblem(f"engine {found.name} of '{name}': {found.value} is no EngineEntry; update {name}")
    return entry


def engine_function(entry: EngineEntry, name: str) -> Any:  # noqa: ANN401  each has its own signature
    """The function `name` of an engine's module.

    Raises:
        PackageMissing: the engine's package is not installed.
        EnvironmentProblem: it is installed but cannot be used.
    """
    # First the package: its error names the line that installs it for this engine.
    if entry.packages:
        packages.load(entry.packages[0], install=entry.install)
    return getattr(importlib.import_module(entry.module), name)


def options_for(engine: str, given: EngineOptions, *, among: Sequence[str]) -> EngineOptions:
    """Those of the options, given for several engines at once, that `engine` understands.

    Raises:
        UsageError: none of the engines `among` which they were given understands one of them.
    """
    from dovit_deploy.engines.base import EngineOptions

    # One option may be for one of several engines; only an option that none of them understands is a mistake.
    for name in given.given():
        if not any(name in engine_entry(other).options for other in among):
            _refuse(name, engine)
    own = {name: value for name, value in given.given().items() if name in engine_entry(engine).options}
    return EngineOptions(**own)


def most_threads() -> int:
    """What an engine may be given: every stage has threads of its own, and hundreds of them stop a small machine."""
    return max(64, 4 * (os.cpu_count() or 1))


def backend_from_name(
    engine: str,
    *,
    precision: str | None = None,
    threads: int | None = None,
    options: EngineOptions | None = None,
    callers: int = 1,
) -> Backend:
    """The backend called `engine`.

    Args:
        precision: one of the engine's; None: its first.
        callers: threads that will run its engines at once; more than one only where the engine is `concurrent`.

    Raises:
        UsageError: unknown engine or precision, an option that the engine does not understand, or less than one thread.
        PackageMissing: the engine's package is not installed.
        EnvironmentProblem: it is installed but cannot be used.
    """
    from dovit_deploy.engines.base import NONE_GIVEN

    entry, options = engine_entry(engine), options or NONE_GIVEN
    if precision is not None and not (isinstance(precision, str) and precision in entry.precisions):
        shown = f"'{precision[:80]}'" if isinstance(precision, str) else type(precision).__name__
        raise UsageError(f"engine {engine} does not run precision {shown}; it runs: {', '.join(entry.precisions)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
        raise UsageError(f"threads: {type(threads).__name__} given, a whole number is needed")
    if threads is not None and not 1 <= threads <= most_threads():
        raise UsageError(
            f"threads: {str(threads)[:20]} given, at least 1 is needed and at most {most_threads()} on this machine"
        )
    for name in options.given():
        if name not in entry.options:
            _refuse(name, engine)
    make = engine_function(entry, entry.backend)
    extra: dict[str, Any] = {"options": options} if entry.options else {}
    if entry.concurrent:
        extra["callers"] = callers
    backend: Backend = make(precision=precision or entry.precisions[0], threads=threads, **extra)
    return backend


def _refuse(option: str, engine: str) -> NoReturn:
    takers = ", ".join(name for name, entry in ENGINES.items() if option in entry.options)
    raise UsageError(f"--{option.replace('_', '-')} means nothing to engine {engine}; it is for: {takers}")
