"""transformers and timm, where they are installed, or a skip with the reason.

timm imports torchvision, whose wheels of the package index want another build of PyTorch and fail beside the one
installed here. None of its vision transformers uses it, so a stand-in takes its part while timm is imported.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import pytest

_REASON = "is not installed; `make test` installs it"


@cache
def transformers() -> Any:
    """The package; nothing of it asks the network for anything."""
    # Read when it is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", reason=f"transformers {_REASON}")


@cache
def timm_vision_transformer() -> Any:
    """timm's module of vision transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if importlib.util.find_spec("timm") is None:
        pytest.skip(f"timm {_REASON}")
    with torchvision_stand_in():
        return importlib.import_module("timm.models.vision_transformer")


class AnyMember(type):
    """A class that has every member that is asked for; each is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandInModule(ModuleType):
    """Has every class that is asked for, as an empty one."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyMember(name, (), {})


class StandInFinder:
    """Finds every module of torchvision."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Modules called torchvision that hold nothing, and are gone afterwards; a real one is used where there is one."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = StandInFinder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
