"""What users of torch, onnx, onnxruntime(-gpu), tensorrt(-rtx), pycuda, OpenCV and Typer can rely on.

Each is declared in pyproject.toml, imported where it belongs and nowhere else, never merely because this package is
imported, and covered by tests.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dovit_deploy.packages import OPTIONAL
from tests.paths import ROOT

PACKAGE = ROOT / "dovit_deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

TORCH_WINGS = ("families", "checkpoints", "export", "train", "adapt")
"""Folders whose modules may say `import torch`: specs and costs apart, they are imported only by what needs PyTorch."""


@dataclass(frozen=True)
class Promise:
    """One package of the ecosystem: how it is declared, who may import it, what tests it."""

    module: str
    distributions: dict[str, tuple[str, ...]]
    """Distribution -> the extras that bring it; no extras: the base install."""
    imported_in: tuple[str, ...] = ()
    """Folders and files with an import statement of it; without any it comes through `packages` alone."""
    loaded_in: tuple[str, ...] = ("packages.py",)
    """Files that may name it to `packages.load`, or an accessor of `packages`: its seam."""
    tests: tuple[tuple[str, str], ...] = ()
    """Files that run what uses it, and the name by which each takes hold of that."""


PROMISES = (
    Promise(
        "torch",
        {"torch": ("export", "train")},
        imported_in=TORCH_WINGS,
        # Only to say early what is missing, or whether it works.
        loaded_in=("measure/inspect_checkpoint.py", "commands/smaller_input.py"),
        tests=(("tests/families/test_eager.py", "EagerBackend"), ("tests/test_torch_free.py", "export_without_torch")),
    ),
    Promise(
        "onnx",
        {"onnx": ("export", "train", "openvino", "tensorrt", "tensorrt-rtx")},
        imported_in=("export/to_onnx.py",),
        tests=(
            ("tests/export/test_pipeline.py", "export"),
            ("tests/graphs/test_half_precision.py", "half_precision"),
        ),
    ),
    Promise(
        "onnxruntime",
        {"onnxruntime": ("cpu", "export"), "onnxruntime-gpu": ("gpu",)},
        tests=(
            ("tests/runtime/test_session.py", "onnxruntime"),
            ("tests/engines/test_onnxruntime_cuda.py", "session_on_gpu"),
        ),
    ),
    Promise(
        "openvino",
        {"openvino": ("openvino",)},
        tests=(("tests/engines/test_openvino.py", "OpenVinoBackend"),),
    ),
    Promise(
        "tensorrt",
        {"tensorrt-cu13": ("tensorrt",)},
        loaded_in=("engines/tensorrt/package.py",),
        tests=(("tests/engines/tensorrt/test_package.py", "tensorrt_package"),),
    ),
    Promise(
        "tensorrt_rtx",
        {"tensorrt-rtx-cu13": ("tensorrt-rtx",)},
        loaded_in=("engines/tensorrt/package.py",),
        tests=(
            ("tests/engines/tensorrt/test_package.py", "tensorrt_rtx"),
            ("tests/engines/tensorrt/test_builder_rtx.py", "layer"),
        ),
    ),
    Promise(
        "pycuda",
        {"pycuda": ("pycuda",)},
        loaded_in=("engines/cuda/pycuda.py",),
        tests=(("tests/engines/cuda/test_memory.py", "pycuda"),),
    ),
    Promise(
        "cuda",
        {"cuda-bindings": ("gpu", "tensorrt", "tensorrt-rtx"), "cuda-core": ("gpu",)},
        loaded_in=("engines/cuda/bindings.py", "engines/plugins/kernels.py"),
        tests=(
            ("tests/engines/cuda/test_memory.py", "cuda.bindings"),
            ("tests/engines/plugins/test_kernels.py", "compiled_kernels"),
        ),
    ),
    Promise(
        "cv2",
        {"opencv-python-headless": ("cpu", "export", "gpu", "train")},
        tests=(
            ("tests/sources/test_opencv.py", "without_pyav"),
            ("tests/runtime/test_transforms.py", "OpenCV"),
        ),
    ),
    Promise(
        "typer",
        {"typer": ()},
        imported_in=("cli.py", "commands"),
        loaded_in=(),
        tests=(("tests/commands/test_cli.py", "dovit("),),
    ),
)
THROUGH_PACKAGES = tuple(promise for promise in PROMISES if promise.module != "typer")

by_module = pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.module)


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every file of the package by its path in it, parsed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def names(requirements: list[str]) -> set[str]:
    """Distributions of requirement lines."""
    return {re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower() for line in requirements}


def imported(tree: ast.Module) -> Iterator[str]:
    """Top-level modules of import statements at any depth, those for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def loaded(tree: ast.Module) -> Iterator[str]:
    """Top-level modules named as text: to `load`, to `import_module`, in tables of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0] if node.args else None
            if function in ("load", "import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value).split(".")[0]


def belongs(path: str, owners: tuple[str, ...]) -> bool:
    """Is `path` one of the files `owners`, or in one of those folders?"""
    return any(path == owner or path.startswith(f"{owner}/") for owner in owners)


@by_module
def test_it_is_declared(promise) -> None:
    for distribution, extras in promise.distributions.items():
        declared = {extra for extra, lines in EXTRAS.items() if distribution in names(lines)}
        assert declared == set(extras), f"{distribution} is in {sorted(declared)}"
        assert (distribution in names(PROJECT["dependencies"])) == (not extras), f"{distribution} and the base install"


@by_module
def test_import_statements_are_where_they_belong(promise) -> None:
    strangers = [
        path for path, tree in sources() if promise.module in imported(tree) and not belongs(path, promise.imported_in)
    ]
    assert not strangers


@by_module
def test_it_is_loaded_at_its_seam_alone(promise) -> None:
    loading = {path for path, tree in sources() if promise.module in loaded(tree)}
    assert loading <= {"packages.py", *promise.loaded_in}
    assert all((PACKAGE / name).exists() for name in (*promise.loaded_in, *promise.imported_in))


@pytest.mark.parametrize("promise", THROUGH_PACKAGES, ids=lambda promise: promise.module)
def test_the_message_that_it_is_missing_names_an_extra_that_brings_it(promise) -> None:
    entries = [entry for module, entry in OPTIONAL.items() if module.split(".")[0] == promise.module]
    assert entries
    brought = {extra for extras in promise.distributions.values() for extra in extras}
    for entry in entries:
        (extra,) = re.findall(r"dovit-deploy\[(.+?)\]", entry.install) or [None]
        if extra is None:
            assert names(entry.install.removeprefix("pip install ").split()) & set(promise.distributions), entry.install
        else:
            assert extra in brought, entry.install


@by_module
def test_it_is_covered(promise) -> None:
    assert promise.tests
    for name, handle in promise.tests:
        text = (ROOT / name).read_text()
        assert "def test_" in text and handle in text, name


def test_importing_the_package_imports_none_of_them() -> None:
    """Every module outside the wings for PyTorch and the command line, in a process of its own.

    What a server runs imports what only a server has.
    """
    modules = sorted(
        "dovit_deploy." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path, _ in sources()
        if not belongs(path, (*TORCH_WINGS, "commands", "cli.py", "triton/served")) and not path.endswith("__main__.py")
    )
    assert len(modules) > 50
    heavy = [promise.module for promise in PROMISES]
    program = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_two_onnxruntimes_exclude_each_other() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["conflicts"]
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in tool
    for extra, lines in EXTRAS.items():
        assert not {"onnxruntime", "onnxruntime-gpu"} <= names(lines), extra


def test_nothing_of_a_window_is_called() -> None:
    """Which of OpenCV's distributions a user has does not matter: no call needs the one with windows."""
    windows = ("imshow", "waitKey", "namedWindow", "destroyAllWindows")
    for path, tree in sources():
        # matplotlib's axes have an `imshow` of their own, which opens nothing.
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        calls = {node.attr for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id == "axes")}
        assert not calls & set(windows), path
