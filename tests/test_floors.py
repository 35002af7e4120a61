"""The house: who may import whom, no circles, optional packages in one place, one idea per file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dovit_deploy"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "errors": 0,
    "packages": 1,
    "output_folder": 1,
    "machine": 1,
    "default_bundle": 1,
    "bundle": 2,
    "models": 3,
    "engines": 3,
    "cost": 3,
    "scenes": 3,
    "runtime": 4,
    "export": 5,
    "measure": 5,
    "train": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}
# Named in `engines/registry.py` by their modules, never imported by each other.
APART = {("models", "engines"), ("engines", "models")}
# `models/eager.py` speaks the engine protocol, and that is all it may know of engines.
SPEAKS = {"dovit_deploy.engines.base"}
TORCH_WING = {"models", "export", "train"}
OPTIONAL = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cv2", "av", "PIL", "matplotlib", "supervision", "pycuda"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that `path` imports, with the line, also inside functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if is_module(name) else node.module, node.lineno) for name in names]
    return found


def is_module(name: str) -> bool:
    place = PACKAGE.parent / Path(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def own_imports(path: Path) -> list[str]:
    return [name for name, _ in imports(path) if name.startswith("dovit_deploy.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_lower_floors_or_its_own_folder(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    for name in own_imports(path):
        other = name.split(".")[1]
        if other == own or name in SPEAKS:
            continue
        assert FLOORS[other] < FLOORS[own], f"{path.name} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"
        assert (own, other) not in APART, f"{path.name} imports {name}"


def test_no_circles() -> None:
    graph = {module_name(path): set(own_imports(path)) for path in FILES if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def module_name(path: Path) -> str:
    return ".".join(("dovit_deploy", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_in_one_place(path: Path) -> None:
    for name, line in imports(path):
        top = name.split(".")[0]
        assert top not in OPTIONAL, f"{path.name}:{line} imports {top}; ask dovit_deploy.packages for it"
        if top in ("torch", "onnx", "onnx_ir", "onnxscript") or name == "safetensors.torch":
            assert room(path) in TORCH_WING, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_says_its_idea_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    assert len(path.read_text().splitlines()) <= 300, f"{path.name} is long: one idea?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path.name}:{node.lineno} {node.name} takes **kwargs"
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_no_file_is_a_drawer() -> None:
    for path in FILES:
        assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


def test_no_file_names_a_family_and_an_engine() -> None:
    families, engines = {"dovit", "segmenter", "setr", "evovit", "stvit"}, {"onnxruntime_cpu", "tensorrt"}
    for path in FILES:
        text = {name.split(".")[-1] for name in own_imports(path)}
        assert not (text & families and text & engines), path
