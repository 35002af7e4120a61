"""Which model is taken when none is named."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest

from dovit_deploy import default_bundle as module
from dovit_deploy.errors import InputError


class FakeEntry:
    """An entry point that loads a module-like object."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(bundle_path=lambda: f"/models/{self.name}.dovit", LICENSE_LINE=f"licence of {self.name}")


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    entries = [FakeEntry(name) for name in names]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries if group == module.GROUP else [])


@pytest.mark.parametrize(
    ("names", "chosen"), [(("default",), "default"), (("mine",), "mine"), (("a", "default", "b"), "default")]
)
def test_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], chosen: str) -> None:
    installed(monkeypatch, *names)
    path, licence = module.default_bundle()
    assert path.name == f"{chosen}.dovit"
    assert licence == f"licence of {chosen}"


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_none_or_several_say_what_to_do(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    installed(monkeypatch, *names)
    with pytest.raises(InputError, match="--bundle"):
        module.default_bundle()
