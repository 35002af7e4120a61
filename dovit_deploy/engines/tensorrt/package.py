"""Which TensorRT is installed, and what can it do? The one file that tells `tensorrt` from `tensorrt_rtx`.

`tensorrt` (10.x, 11.x) builds for the GPU of this machine and needs it; `tensorrt_rtx` builds without a GPU, for a
range of compute capabilities. Their Python interfaces differ only in what `Capabilities` lists.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem, ProviderMissing, UsageError


@dataclass(frozen=True)
class Distribution:
    """What must be known about a package before it is imported."""

    module: str
    libraries: str
    """Package in which its wheel installs the shared libraries."""
    core: str
    """File that the ONNX parser opens when it meets a plugin; wheels contain it only with a version appended."""
    oldest: tuple[int, int]
    default_compute_capabilities: tuple[str, ...]
    """Targets of an engine when none are requested; empty: the GPU on which it is built."""


# The oldest versions: TensorRT 10.0 brought int64 tensors and IPluginV3; TensorRT for RTX refuses plugins before 1.7,
# and builds for 7.5, too, but only on request.
DISTRIBUTIONS = {
    "tensorrt": Distribution("tensorrt", "tensorrt_libs", "libnvinfer.so", (10, 0), ()),
    "tensorrt-rtx": Distribution(
        "tensorrt_rtx", "tensorrt_rtx_libs", "libtensorrt_rtx.so", (1, 7), ("8.0", "8.6", "8.9", "12.0")
    ),
}
"""Name of the engine on the command line -> its package."""


@dataclass(frozen=True)
class Capabilities:
    """What this version of the package has; found by looking at it, not by its version number."""

    strongly_typed: bool
    """Networks can be declared strongly typed; where the flag is absent (11.x), they always are."""
    compute_capabilities: tuple[str, ...]
    """Targets ("8.6", ...) that need no GPU at build time; empty: only the GPU of this machine."""
    plugins: bool
    """IPluginV3 classes written in Python."""
    runtime_config: bool
    """Execution contexts take CUDA graphs, kernel specialisation and a cache of kernels (TensorRT for RTX)."""
    given_memory: bool
    """Execution contexts can share memory of the caller, as much as each profile needs (10.1 and later)."""
    reports_capturable: bool
    """A context says whether its work can be captured as a CUDA graph."""
    promises_capture: bool
    """The builder can be asked for an engine whose work can be captured for certain."""


@dataclass(frozen=True)
class TensorRtPackage:
    """An imported package."""

    engine: str
    version: str
    capabilities: Capabilities
    module: Any
    default_compute_capabilities: tuple[str, ...]

    @property
    def network_flags(self) -> int:
        """Bits for `Builder.create_network`: strongly typed, so that the engine has the types of the graph."""
        flags = self.module.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED) if self.capabilities.strongly_typed else 0

    def logger(self, *, everything: bool) -> Any:  # noqa: ANN401
        """A logger of the package's own class that keeps `errors`, and with `everything` all `messages`."""
        return _logger(self.module, everything=everything)

    def check_gpu(self, device: str) -> None:
        """Raise ProviderMissing where no engine of this package can run on such a GPU ("9.0"): building would not help.

        TensorRT for RTX knows a list, and runs on what is newer than all of it; TensorRT builds for the GPU it is on.
        """
        known = self.capabilities.compute_capabilities
        if known and device not in known and float(device) < max(map(float, known)):
            raise ProviderMissing(
                f"{self.engine} {self.version} does not support this GPU (compute capability {device}; it runs on "
                f"{', '.join(known)} and later); use --engine tensorrt, or --engine cuda"
            )

    def runs_on(self, built_for: Sequence[str], device: str) -> bool:
        """Whether engines built for these compute capabilities run on a GPU of this one ("8.9").

        TensorRT for RTX finishes its engines on the device, also on supported GPUs newer than every target.
        """
        if device in built_for:
            return True
        return bool(self.capabilities.compute_capabilities) and float(device) > max(map(float, built_for))

    def compute_capability(self, name: str) -> Any:  # noqa: ANN401  an enumeration of the package
        """The package's value for "8.6".

        Raises:
            UsageError: it cannot build for that, or builds only for the GPU of this machine.
        """
        known = self.capabilities.compute_capabilities
        if name not in known:
            allowed = f"it builds for: {', '.join(known)}" if known else "it builds for this machine's GPU only"
            raise UsageError(f"--compute-capability: '{name}' given to {self.engine} {self.version}; {allowed}")
        return getattr(self.module.ComputeCapability, "SM" + name.replace(".", ""))


def tensorrt_package(engine: str) -> TensorRtPackage:
    """Import the package of `engine` (tensorrt or tensorrt-rtx).

    Raises:
        PackageMissing: it is not installed, or is broken.
        EnvironmentProblem: it is too old, or its libraries do not load.
    """
    distribution = DISTRIBUTIONS[engine]
    module = packages.load(distribution.module)
    version = str(module.__version__)
    # Two numbers suffice, and versions may end in letters ("10.3.0.post1").
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < distribution.oldest:
        raise EnvironmentProblem(
            f"{distribution.module} {version} is installed, {'.'.join(map(str, distribution.oldest))} or later is "
            f"needed: {packages.OPTIONAL[distribution.module].install} --upgrade"
        )
    defaults = distribution.default_compute_capabilities
    return TensorRtPackage(engine, version, capabilities_of(module), module, defaults)


def installed_version(engine: str) -> str | None:
    """Version of the package of `engine`, found without importing it; None if it is not installed."""
    module = DISTRIBUTIONS[engine].module
    # The distribution's name differs from the module's, and from one CUDA version to the next (tensorrt-rtx-cu13).
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(name)
    return None


def capabilities_of(module: Any) -> Capabilities:  # noqa: ANN401
    """What `module` (`tensorrt` or `tensorrt_rtx`) has."""

    def has(kind: str, *names: str) -> bool:
        return all(hasattr(getattr(module, kind, None), name) for name in names)

    targets = [name for name in dir(getattr(module, "ComputeCapability", None)) if re.fullmatch(r"SM\d+", name)]
    return Capabilities(
        strongly_typed=has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        compute_capabilities=tuple(sorted(map(_dotted, targets), key=float)),
        plugins=hasattr(module, "IPluginV3") and hasattr(module, "IPluginCreatorV3One"),
        # Not by `create_runtime_config`: TensorRT 10.11 and later has it, too, and nothing in what it returns.
        runtime_config=has(
            "IRuntimeConfig",
            *("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "create_runtime_cache"),
        ),
        given_memory=has("IExecutionContext", "set_device_memory")
        and has("ICudaEngine", "get_device_memory_size_for_profile_v2"),
        reports_capturable=has("IExecutionContext", "is_stream_capturable"),
        promises_capture=has("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    )


def _logger(trt: Any, *, everything: bool) -> Any:  # noqa: ANN401
    wrong = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # The base class is bound by pybind11, which needs its own initialiser to be called.
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if everything:
                self.messages.append(message)
            if severity in wrong:
                self.errors.append(message)

    return Kept()


def _dotted(name: str) -> str:
    """SM86 -> 8.6, SM120 -> 12.0."""
    return f"{name[2:-1]}.{name[-1]}"


def cache_home() -> Path:
    """The folder of everything that can be built again (XDG_CACHE_HOME/dovit-deploy on Linux)."""
    return Path(platformdirs.user_cache_path("dovit-deploy"))


def library_folder(package: TensorRtPackage, *, home: Path | None = None) -> Path | None:
    """A folder with a link to the core library under its bare name; None if the wheel has no versioned one.

    The ONNX parser opens `libtensorrt_rtx.so` when it meets a plugin, and aborts the process if there is no such file;
    the wheel has `libtensorrt_rtx.so.1`. The loader reads LD_LIBRARY_PATH only when a process starts, hence
    `child_environment`.
    """
    distribution = DISTRIBUTIONS[package.engine]
    found = importlib.util.find_spec(distribution.libraries)
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    versioned = [path for folder in folders for path in sorted(folder.glob(f"{distribution.core}.*"))]
    if not versioned:
        return None
    folder = (home or cache_home()) / "libraries" / f"{package.engine}-{package.version}"
    folder.mkdir(parents=True, exist_ok=True)
    link, target = folder / distribution.core, versioned[0].resolve()
    if not link.is_symlink() or link.readlink() != target:
        # Another process may do the same at this moment: a rename replaces an existing link in one step.
        aside = folder / f"{distribution.core}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
    return folder


def child_environment(folder: Path | None) -> dict[str, str]:
    """The environment of a process that may meet plugins: `folder` comes first on LD_LIBRARY_PATH."""
    environment = dict(os.environ)
    if folder is not None:
        rest = environment.get("LD_LIBRARY_PATH")
        # In front, so that the link wins over another TensorRT on the user's path.
        environment["LD_LIBRARY_PATH"] = f"{folder}{os.pathsep}{rest}" if rest else str(folder)
    return environment
