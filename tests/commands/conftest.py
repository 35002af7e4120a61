"""What tests of several verbs need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dovit_deploy.engines.tensorrt import build as tensorrt_build
from dovit_deploy.engines.tensorrt import package as tensorrt_package
from tests.engines.tensorrt.fake_builder import MODULE, fake_package


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


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command line in this process, with a stand-in for TensorRT; returns the folder of the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(tensorrt_build, "BUILDER", MODULE)
    monkeypatch.setattr(tensorrt_package, "tensorrt_package", fake_package)
    monkeypatch.setattr(tensorrt_package, "installed_version", lambda engine: "1.7.1")
    return tmp_path / "xdg" / "dovit-deploy" / "engines"


@pytest.fixture
def single_copy(dense_bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle of one graph, to be damaged."""
    return Path(shutil.copytree(dense_bundle_path, tmp_path / "single.dovit"))
