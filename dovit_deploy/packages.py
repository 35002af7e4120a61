"""The one file where each optional package is imported, lazily, with the line that installs it.

Code asks for the *module*; whichever distribution provides it (opencv-python or opencv-python-headless, onnxruntime or
onnxruntime-gpu) is the user's choice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from dovit_deploy.errors import EnvironmentProblem, PackageMissing

# ONNX Runtime reads this when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# The FFmpeg inside OpenCV reads this at its first video; our errors say what it would print. Set it to see its lines.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True)
class OptionalPackage:
    """An importable module, what it is for, and how to get it."""

    module: str
    purpose: str
    install: str
    hidden: str | None = None
    """A module that its import must not find."""


OPTIONAL = {
    package.module: package
    for package in (
        OptionalPackage("onnxruntime", "running bundles", "pip install 'dovit-deploy[cpu]'"),
        OptionalPackage("cv2", "reading, resizing and painting images", "pip install 'dovit-deploy[cpu]'"),
        OptionalPackage("PIL", "reading images", "pip install 'dovit-deploy[cpu]'"),
        OptionalPackage("av", "video with audio, rotation and H.264", "pip install 'dovit-deploy[video]'"),
        OptionalPackage("torch", "checkpoints, export and training", "pip install 'dovit-deploy[export]'"),
        OptionalPackage("onnx", "export, building engines and inspecting graphs", "pip install 'dovit-deploy[export]'"),
        OptionalPackage("onnx_ir", "export and building engines", "pip install 'dovit-deploy[export]'"),
        OptionalPackage("onnxscript", "export", "pip install 'dovit-deploy[export]'"),
        OptionalPackage("yaml", "Segmenter's variant.yml", "pip install 'dovit-deploy[export]'"),
        OptionalPackage(
            *("openvino", "the engine openvino", "pip install 'dovit-deploy[openvino]'"),
            # Where OpenVINO finds it, the mere import writes to the home folder and starts a process that reports.
            hidden="openvino_telemetry",
        ),
        OptionalPackage("supervision", "handing results to supervision", "pip install supervision"),
        OptionalPackage("cuda.bindings.driver", "running kernels on an NVIDIA GPU", "pip install cuda-bindings"),
        OptionalPackage("cuda.bindings.nvrtc", "compiling kernels", "pip install cuda-bindings nvidia-cuda-nvrtc"),
        OptionalPackage("pycuda.driver", "GPU memory by --cuda-memory pycuda", "pip install 'dovit-deploy[pycuda]'"),
        OptionalPackage("tensorrt", "TensorRT engines", "pip install 'dovit-deploy[tensorrt]'"),
        OptionalPackage("tensorrt_rtx", "TensorRT engines for RTX GPUs", "pip install 'dovit-deploy[tensorrt-rtx]'"),
        OptionalPackage("ray", "dovit batch", "pip install 'dovit-deploy[ray]'"),
        OptionalPackage("pyarrow", "lists and figures in Parquet", "pip install 'dovit-deploy[ray]'"),
        OptionalPackage("jinja2", "pages to look at", "pip install 'dovit-deploy[report]'"),
        OptionalPackage("matplotlib", "plots", "pip install 'dovit-deploy[report]'"),
    )
}


def load(module: str, *, install: str | None = None) -> Any:  # noqa: ANN401  the modules carry no types of their own
    """Import `module` (a key of `OPTIONAL`) and return it; `install` is the line that installs it for a use of its own.

    Raises:
        PackageMissing: it is not installed, or is installed and broken.
        EnvironmentProblem: it is installed, and shared libraries that it loads are not there.
    """
    package = OPTIONAL[module]
    try:
        with _hidden(package.hidden):
            return importlib.import_module(module)
    except ImportError as error:
        # The module, or a package around it, is not there; otherwise something that it imports is missing.
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        broken = "" if absent else f" ({error})"
        raise PackageMissing(
            f"the package '{module}' is needed for {package.purpose} and cannot be imported{broken}; "
            f"install it with: {install or package.install}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"the package '{module}' is installed and its libraries do not load: {str(error).splitlines()[0]}; "
            f"reinstall it with: {package.install} --force-reinstall"
        ) from error


@contextmanager
def _hidden(module: str | None) -> Iterator[None]:
    """Within the block `module` cannot be imported; one that was imported before stays."""
    if module is None or module in sys.modules:
        yield
        return
    # What Python itself takes as "not there".
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def is_there(module: str) -> bool:
    """Whether `module`, perhaps inside a package, can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # A package above it is missing.
        return False


def opencv() -> Any:  # noqa: ANN401
    """OpenCV (`cv2`); the headless build is enough, since no window call is ever made."""
    return load("cv2")


def onnxruntime(*, install: str | None = None) -> Any:  # noqa: ANN401
    """ONNX Runtime, with its telemetry switched off before the import."""
    return load("onnxruntime", install=install)


def openvino() -> Any:  # noqa: ANN401
    """OpenVINO, with its telemetry switched off."""
    return load("openvino")


@cache
def openvino_core() -> Any:  # noqa: ANN401
    """OpenVINO's core, the one of this process, kept until its end.

    Each core gives its thread a stack for signals, and at its end puts back the one from before: where cores end in
    another order than the reverse of their making, that is freed memory, and the next signal ends the process with
    SIGSEGV (OpenVINO 2026.4.1, its CPU plugin).
    """
    return openvino().Core()


def onnx() -> Any:  # noqa: ANN401
    """ONNX, for reading graphs and deriving others from them."""
    return load("onnx")


def protobuf_decode_error() -> type[Exception]:
    """What `onnx`, which must be installed, raises for bytes that are no model; it comes with protobuf."""
    error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    return error


def onnx_ir() -> Any:  # noqa: ANN401
    """onnx_ir, which every pass over a graph works in, with its own passes in `onnx_ir.passes.common`."""
    module = load("onnx_ir")
    # Not imported by the package itself.
    importlib.import_module("onnx_ir.passes.common")
    return module


def pillow() -> Any:  # noqa: ANN401
    """Pillow's `PIL.Image`."""
    load("PIL")
    # It warns of damaged metadata in images that it reads all the same.
    warnings.filterwarnings("ignore", module="PIL")
    return importlib.import_module("PIL.Image")


def matplotlib_figure() -> Any:  # noqa: ANN401
    """Matplotlib's module of figures, which need no display and no state of pyplot's."""
    load("matplotlib")
    return importlib.import_module("matplotlib.figure")


def supervision() -> Any:  # noqa: ANN401
    """Roboflow's supervision, which some users annotate with."""
    return load("supervision")


def ray() -> Any:  # noqa: ANN401
    """Ray, which reports nothing home."""
    # Read when Ray begins.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A warning of what a later version will do; nothing here asks for a GPU of Ray's.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Its own processes write pages to stderr when one of them is killed, which is no error here. Set it to see them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A thread that still reads when all has ended would begin another Ray.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    return load("ray")


def ray_data() -> Any:  # noqa: ANN401
    """Ray Data, which passes blocks as tables of pyarrow."""
    ray()
    load("pyarrow")
    return importlib.import_module("ray.data")


def pyarrow_parquet() -> Any:  # noqa: ANN401
    """pyarrow's Parquet files."""
    load("pyarrow")
    return importlib.import_module("pyarrow.parquet")


def pyav() -> Any | None:  # noqa: ANN401
    """PyAV, or None: video then goes through OpenCV, without audio."""
    # Not through `load`: its absence is no error.
    try:
        module = importlib.import_module("av")
        kinds = importlib.import_module("av.sidedata.sidedata").Type
    except ImportError:
        return None
    # The FFmpeg inside knows more kinds of side data than PyAV's enumeration (EXIF), which raises for each other one.
    kinds._missing_ = classmethod(_unnamed_member)
    return module


def _unnamed_member(kinds: Any, value: object) -> Any:  # noqa: ANN401
    """A member of the enumeration `kinds` for a number without a name, so that frames that carry it can be read."""
    member = object.__new__(kinds)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member
