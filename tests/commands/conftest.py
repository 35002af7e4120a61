"""What tests of several verbs need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Gives, for modules by name, the environment of a child process in which importing them fails."""

    def environment(*modules: str) -> dict[str, str]:
        folder = tmp_path / "blocked"
        folder.mkdir()
        for module in modules:
            (folder / f"{module}.py").write_text("raise ImportError('blocked for a test')\n")
        return python_path(folder)

    return environment


def python_path(folder: Path) -> dict[str, str]:
    """An environment that searches `folder` for modules first, then where this process does."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([given] if given else [])])}
