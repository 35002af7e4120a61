"""Names that the tools do not follow: those that stand as text, and those that two things share."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("dovit_deploy", "dovit_scenes")
DOTTED = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?::\w+)?")
"""A module, an attribute behind a dot, or one behind a colon, as registries and entry points write it."""

PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("models/*/*.md"))
    # What changed may be named by the name it had.
    if path.name != "CHANGELOG.md"
]
PLAIN_TEXT = [*PAGES, ROOT / "Makefile", ROOT / "pyproject.toml"]


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def names_as_text() -> dict[str, set[str]]:
    """Dotted name -> the files in which it stands as a string, or in a page."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in python_files(*PACKAGES, "tests", "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in DOTTED.findall(node.value):
                    found[name].add(path.relative_to(ROOT).as_posix())
    for path in PLAIN_TEXT:
        for name in DOTTED.findall(path.read_text()):
            found[name].add(path.relative_to(ROOT).as_posix())
    return found


NAMES = names_as_text()


def resolved(name: str) -> object:
    """The module or attribute that `name` stands for; ImportError or AttributeError where there is none."""
    dotted, _, attribute = name.partition(":")
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # An optional package that the module needs is another matter.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        for part in (*parts[length:], *filter(None, [attribute])):
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_there_are_names() -> None:
    assert {"dovit_deploy.cli:main", "dovit_deploy.engines.onnxruntime"} <= set(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_that_stands_as_text_can_be_imported(name: str) -> None:
    try:
        resolved(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{', '.join(sorted(NAMES[name]))}: {name} ({error})")


def public_types(path: Path) -> Iterator[str]:
    """Classes and type aliases at the top of a file whose names do not begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).endswith("TypeAlias"):
            name = ast.unparse(node.target)
        elif isinstance(node, ast.Assign) and is_alias(node.value):
            name = ast.unparse(node.targets[0])
        else:
            continue
        if not name.startswith("_"):
            yield name


def is_alias(value: ast.expr) -> bool:
    """`NDArray[...]`, `Callable[...]`, `tuple[...]`, `A | B`: a type written as an expression."""
    if isinstance(value, ast.Subscript):
        base = ast.unparse(value.value).split(".")[-1]
        return base in {"NDArray", "Callable", "Mapping", "Sequence", "tuple", "dict", "list", "Literal", "Annotated"}
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return all(re.fullmatch(r"[A-Z]\w*(\[.*\])?|None|str|int|float", ast.unparse(side)) for side in sides(value))
    return False


def sides(value: ast.expr) -> list[ast.expr]:
    if isinstance(value, ast.BinOp):
        return [*sides(value.left), *sides(value.right)]
    return [value]


@pytest.mark.parametrize("folders", [("dovit_deploy", "benchmarks"), ("dovit_scenes",)], ids="-".join)
def test_no_two_types_share_a_name(folders: tuple[str, ...]) -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*folders):
        for name in public_types(path):
            files[name].append(path.relative_to(ROOT).as_posix())
    twins = {name: paths for name, paths in files.items() if len(paths) > 1}
    assert not twins


FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", "csrc", "models")
MENTIONED = re.compile(r"(?<![\w/.*{-])((?:[\w-]+/)*[\w-]+\.(?:py|cuh|cpp|md|toml))(?![\w*])")
"""Names of source files and pages, with or without folders; not patterns."""

KNOWN_ELSEWHERE = {"config.py", "helpers/labels.py", "OperatorKernels.md"}
"""Files of other projects that texts name."""


def mentioned_files(path: Path) -> Iterator[str]:
    """Files that the docstrings and comments of a Python file name, or a page."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from MENTIONED.findall(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from MENTIONED.findall(node.value.value)
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            yield from MENTIONED.findall(line)


def test_every_file_that_a_text_names_exists() -> None:
    """By its path in the project, or the end of it (`bundle/manifest.py`, `camera.py`)."""
    project = [f"/{path.relative_to(ROOT).as_posix()}" for name in FOLDERS for path in (ROOT / name).rglob("*")]
    project += [f"/{path.name}" for path in ROOT.iterdir()]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*python_files(*PACKAGES, "tests", "benchmarks"), *PAGES)
        for name in mentioned_files(path)
        if name not in KNOWN_ELSEWHERE and not (path.parent / name).exists()
        if not any(file.endswith(f"/{name}") for file in project)
    ]
    assert not missing, "\n".join(missing)
