"""Which code serves the token plugins in this process: the Python classes, or the library that `make plugins` compiles.

The environment variable `DOVIT_PLUGIN_LIBRARY` names a compiled library; without it the Python classes serve. An engine
holds calls of plugins, not their code, so what it was built with must be there again when it runs: hence the digest.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.bundle.directory import file_entry
from dovit_deploy.engines.tensorrt_package import TensorRtPackage
from dovit_deploy.engines.token_kernels import kernel_source
from dovit_deploy.engines.token_plugins import register_plugins
from dovit_deploy.errors import EnvironmentProblem

VARIABLE = "DOVIT_PLUGIN_LIBRARY"
SOURCES = ("token_plugins.py", "token_kernels.py")
"""Files of this folder that are the Python plugins; the CUDA source that they compile is the rest."""


def compiled_library() -> Path | None:
    """The library that `DOVIT_PLUGIN_LIBRARY` names; None where it names none.

    Raises:
        EnvironmentProblem: it is not there.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    path = Path(named).absolute()
    if not path.is_file():
        raise EnvironmentProblem(
            f"{VARIABLE}: no plugin library at {path}; compile it with: make plugins TENSORRT_INCLUDE=..., "
            f"or unset {VARIABLE}: the plugins are then those of Python"
        )
    return path


def plugin_digest() -> str:
    """SHA-256 of the code of the plugins, their kernels included.

    Raises:
        EnvironmentProblem: the compiled library is named and not there.
    """
    library = compiled_library()
    if library is not None:
        return file_entry(library).sha256
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    digest.update(kernel_source().encode())
    return digest.hexdigest()


def check_plugins_run() -> None:
    """Raise PackageMissing where the Python plugins would serve and cannot compile or launch their kernels."""
    if compiled_library() is None:
        for module in ("cuda.bindings.driver", "cuda.bindings.nvrtc"):
            packages.load(module)


@functools.cache
def registered_plugins(package: TensorRtPackage) -> Any:  # noqa: ANN401  creators, or a library's handle
    """Make the plugins known to TensorRT in this process, once; the cache keeps alive what the registry does not.

    Raises:
        EnvironmentProblem: the compiled library is named and not there, or does not load.
    """
    library = compiled_library()
    if library is None:
        return register_plugins(package.module)
    handle = package.module.get_plugin_registry().load_library(str(library))
    if handle is None:
        raise EnvironmentProblem(
            f"{VARIABLE}: TensorRT does not load {library}; compile it for {package.engine} {package.version} with: "
            "make plugins TENSORRT_INCLUDE=..."
        )
    return handle
