"""Models that are installed for the length of a test."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from dovit_deploy.bundle.installed import GROUP


class FakeEntry:
    """An entry point that loads a module-like object."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.value = f"module_of_{path.stem}"

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(bundle_path=lambda: self.path, LICENSE_LINE=f"licence of {self.name}")


def install(monkeypatch: pytest.MonkeyPatch, models: Mapping[str, Path]) -> None:
    """These models are installed, and no others."""
    entries = [FakeEntry(name, path) for name, path in models.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries if group == GROUP else [])
