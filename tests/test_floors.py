"""The house: who may import whom, no circles, optional packages in one place, one idea per file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "dovit_deploy"
SCENES = ROOT / "dovit_scenes"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY_FILE = [*FILES, *sorted(SCENES.rglob("*.py"))]

# From the ground up: a room imports from lower floors and from its own folder. Rooms of one number stand beside each
# other and do not know each other. A room is a folder or, where its files stand on several floors, a file.
FLOORS = {
    "errors": 1,
    "record": 1,
    "packages": 1.5,
    "files": 1.5,
    "machine": 1.5,
    "interruption": 1.5,
    # What a network is, as data: no torch, no engine.
    "families/spec": 2,
    "families/any_spec": 2,
    "families/cost": 2,
    "families/macs": 2,
    "families/parts": 2,
    "families/vit/spec": 2,
    "families/vit/cost": 2,
    "families/evovit/spec": 2,
    "families/evovit/cost": 2,
    "families/stvit/spec": 2,
    "families/stvit/swin_spec": 2,
    "families/stvit/cost": 2,
    "bundle": 2,
    # Networks and graphs; then what reads checkpoints into the first and runs the second.
    "families": 3,
    "graphs": 3,
    "checkpoints": 3,
    "engines": 3.5,
    "sources": 3.5,
    "runtime": 4,
    "datasets": 5,
    "measure": 6,
    "export": 6,
    "calibrate": 7,
    "train": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 10,
}
# A family's specs and what a bundle says of itself are one floor; readers and what a weights file is made of another.
BESIDE = (
    *({"bundle", name} for name, floor in FLOORS.items() if name.startswith("families/") and floor == 2),
    {"families", "checkpoints"},
)
# `families/eager.py` speaks the engine protocol, and that is all it may know of engines.
SPEAKS = {("families/eager", "engines/base")}
TORCH_WING = {"families", "checkpoints", "export", "train"}
OPTIONAL = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cv2", "av", "PIL", "matplotlib", "supervision", "pycuda"}


def file_name(path: Path) -> str:
    """`families/vit/spec` of `dovit_deploy/families/vit/spec.py`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def room(name: str) -> str:
    """The room that a file belongs to: itself if it stands in FLOORS, else its top folder."""
    return name if name in FLOORS else name.split("/")[0]


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


@pytest.mark.parametrize("path", FILES, ids=file_name)
def test_a_file_imports_from_lower_floors_or_its_own_folder(path: Path) -> None:
    own = file_name(path)
    if own.endswith("__init__"):
        return
    for name in own_imports(path):
        other = name.removeprefix("dovit_deploy.").replace(".", "/")
        if (own, other) in SPEAKS:
            continue
        here, there = room(own), room(other)
        beside = own.split("/")[0] == other.split("/")[0] or {here, there} in BESIDE
        allowed = FLOORS[there] < FLOORS[here] or (FLOORS[there] == FLOORS[here] and beside)
        assert allowed, f"{own} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[there]})"


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


@pytest.mark.parametrize("path", FILES, ids=file_name)
def test_optional_packages_are_imported_in_one_place(path: Path) -> None:
    for name, line in imports(path):
        top = name.split(".")[0]
        assert top not in OPTIONAL, f"{path.name}:{line} imports {top}; ask dovit_deploy.packages for it"
        if top in ("torch", "onnx", "onnx_ir", "onnxscript") or name == "safetensors.torch":
            assert file_name(path).split("/")[0] in TORCH_WING, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=file_name)
def test_every_file_says_its_idea_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    assert len(path.read_text().splitlines()) <= 600, f"{path.name} is long: one idea?"
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
