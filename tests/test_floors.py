"""The house: who may import whom, no circles, optional packages in one file, one question per file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "dovit_deploy"
SCENES = ROOT / "dovit_scenes"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY_FILE = [*FILES, *sorted(SCENES.rglob("*.py"))]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("credentials", "errors", "record"),
    (
        *("betting", "bounds", "claims", "documents", "files", "interruption", "machine", "packages", "printing"),
        *("progress", "signatures"),
    ),
    ("bundle", "families/spec", "pages"),
    ("families", "checkpoints", "graphs"),
    ("engines", "sources"),
    ("runtime",),
    ("batch", "datasets", "triton", "view"),
    ("measure", "export"),
    ("calibrate", "train"),
    ("adapt",),
    ("commands",),
    ("cli",),
)
"""From the ground up, as docs/architecture.md shows them. A file imports from lower floors and from its own room; rooms
of one floor do not know each other. `families/spec` is what a family says without torch: its specs and its costs."""

NEIGHBOURS = ({"bundle", "families/spec"}, {"families", "checkpoints"}, {"files", "claims"}, {"documents", "packages"})
"""Rooms of one floor that do: a manifest holds a spec, and a spec's task says what a bundle is for; a family brings the
readers of its checkpoints, which are written with what every checkpoint has; who writes a file has claimed it."""

STRANGERS = {"engines": "families"}
"""Rooms on different floors that never meet: the bundle joins networks and engines."""

SPEAKS = ("families/eager", "engines/base")
"""The PyTorch reference speaks the engine protocol, and that is all that a network may know of engines."""

SPEC_FILES = ("spec", "cost", "macs", "parts")
"""How the names of the files on the floor of `families/spec` end."""

TORCH_ROOMS = {"adapt", "families", "checkpoints", "export", "train"}
OPTIONAL = {
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "cv2",
    "av",
    "PIL",
    "jinja2",
    "matplotlib",
    "supervision",
    "pycuda",
    "cuda",
    "ray",
    "pyarrow",
}

LONGEST_FILE, LONGEST_FUNCTION = 450, 80


def file_name(path: Path) -> str:
    """`families/vit/spec` of `dovit_deploy/families/vit/spec.py`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def room(name: str) -> str:
    """The room of the file `name`: its top folder, or itself where it lies in none."""
    parts = name.split("/")
    return "families/spec" if parts[0] == "families" and parts[-1].endswith(SPEC_FILES) else parts[0]


def floor(name: str) -> int:
    """1 is the ground."""
    return next(number for number, rooms in enumerate(FLOORS, 1) if room(name) in rooms)


def may_import(name: str, other: str) -> bool:
    here, there = room(name), room(other)
    if (name, other) == SPEAKS or here == there:
        return True
    if STRANGERS.get(here) == there:
        return False
    return floor(other) < floor(name) or {here, there} in NEIGHBOURS


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
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports(path: Path) -> list[str]:
    """The files of the package that `path` imports, named as `file_name` does."""
    return [
        name.removeprefix("dovit_deploy.").replace(".", "/")
        for name, _ in imports(path)
        if name.startswith("dovit_deploy.")
    ]


@pytest.mark.parametrize("path", FILES, ids=file_name)
def test_a_file_imports_from_lower_floors_or_its_own_room(path: Path) -> None:
    name = file_name(path)
    # The public face and `python -m` stand above the house.
    if name not in ("__init__", "__main__"):
        refused = [other for other in own_imports(path) if not may_import(name, other)]
        assert not refused, f"{name} (floor {floor(name)})"


def test_no_circles() -> None:
    graph = {file_name(path): set(own_imports(path)) for path in FILES if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_room_is_on_a_floor_and_every_floor_is_there() -> None:
    rooms = {room(file_name(path)) for path in FILES} - {"__init__", "__main__"}
    assert rooms == {name for row in FLOORS for name in row}


def test_the_architecture_page_shows_these_floors() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, flags=re.MULTILINE)
    rows = {int(number): tuple(re.findall(r"`([^`]+)`", rooms)) for number, rooms in shown}
    assert rows == dict(enumerate(FLOORS, 1))


def lines_for_types(path: Path) -> set[int]:
    """The lines that only a type checker reads: those under `if TYPE_CHECKING:`."""
    tests = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.If)]
    blocks = [node.body for node in tests if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"]
    return {statement.lineno for block in blocks for statement in block}


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_optional_packages_are_imported_in_one_file(path: Path) -> None:
    if path.name == "packages.py":
        return
    for_types = lines_for_types(path)
    for name, line in imports(path):
        top = name.split(".")[0]
        if top == "onnx_ir" and line in for_types:
            # Graph passes are typed by it, and load it through `packages` when they run.
            continue
        assert top not in OPTIONAL, f"{path.name}:{line} imports {top}; ask packages.py for it"
        if top in ("torch", "onnx", "onnx_ir", "onnxscript") or name == "safetensors.torch":
            assert PACKAGE in path.parents and room(file_name(path)) in TORCH_ROOMS, f"{path.name}:{line}: {name}"


@pytest.mark.parametrize("path", sorted(SCENES.rglob("*.py")), ids=lambda path: path.stem)
def test_the_scenes_know_nothing_of_the_house(path: Path) -> None:
    assert not [name for name, _ in imports(path) if name.split(".")[0] == "dovit_deploy"]


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_says_its_question_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}, "a drawer, not a room"
    assert len(path.read_text().splitlines()) <= LONGEST_FILE, f"{path.name} is long: one question?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path.name}:{node.lineno} {node.name} takes **kwargs"
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path.name}:{node.lineno} {node.name} has {length} lines"
