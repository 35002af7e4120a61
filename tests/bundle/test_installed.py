"""Which bundle a path or a name means."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from dovit_deploy import Bundle
from dovit_deploy.bundle.installed import chosen_bundle, default_bundle, installed_names
from dovit_deploy.errors import EnvironmentProblem, InputError, UsageError
from tests.installed_models import FakeEntry, install


@pytest.mark.parametrize(
    ("names", "chosen"), [(("default",), "default"), (("mine",), "mine"), (("a", "default", "b"), "default")]
)
def test_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], chosen: str) -> None:
    install(monkeypatch, {name: Path(f"/models/{name}.dovit") for name in names})
    found = default_bundle()
    assert found.path.name == f"{chosen}.dovit"
    assert found.licence == f"licence of {chosen}"


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_none_or_several_say_what_to_do(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    install(monkeypatch, {name: Path(name) for name in names})
    with pytest.raises(InputError, match="--bundle"):
        default_bundle()


@pytest.mark.parametrize("given", [None, "default"])
def test_two_defaults_of_different_ages_say_what_to_do(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """When another model has become the default, and the old one was not upgraded."""
    old, new = Path("road-tiny"), Path("road-small")
    entries = [FakeEntry(name, path) for path in (old, new) for name in ("default", path.name)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries)
    with pytest.raises(
        InputError, match=r"default: module_of_road-small, module_of_road-tiny; upgrade .*road-small, road"
    ):
        chosen_bundle(given)
    assert chosen_bundle("road-tiny").path == old
    # Installed twice, as from a clone and as a wheel, it is one model.
    entries[2:] = entries[:2]
    assert chosen_bundle(given).path == old


def test_a_name_is_an_installed_model(monkeypatch: pytest.MonkeyPatch, tiny_bundle_path: Path) -> None:
    install(monkeypatch, {"default": Path("/elsewhere"), "road-tiny": tiny_bundle_path})
    assert chosen_bundle("road-tiny").licence == "licence of road-tiny"
    assert Bundle.open("road-tiny").path == tiny_bundle_path
    assert installed_names() == ("road-tiny",)


def test_a_path_that_exists_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle_copy: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle_copy.rename(tmp_path / "road-tiny")
    install(monkeypatch, {"road-tiny": Path("/elsewhere")})
    found = chosen_bundle("road-tiny")
    assert (found.path, found.licence) == (Path("road-tiny"), None)
    assert Bundle.open("road-tiny").path == tmp_path / "road-tiny"


def test_an_unknown_name_lists_the_installed_ones_and_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"default": Path("d"), "road-tiny": Path("t"), "road-small": Path("s")})
    with pytest.raises(InputError, match=r"installed: default, road-small, road-tiny\); did you mean road-tiny\?"):
        chosen_bundle("road-tinny")
    with pytest.raises(InputError, match="did you mean road-tiny"):
        chosen_bundle("models/road-tiny.dovit")
    with pytest.raises(InputError, match="no bundle at x, and no installed model") as found:
        chosen_bundle("x")
    assert "did you mean" not in str(found.value)


def test_without_any_model_the_line_that_installs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    with pytest.raises(InputError, match="pip install"):
        chosen_bundle("road-tiny")


@pytest.mark.parametrize("given", ["a" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_system_allows(given: str) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        chosen_bundle(given)


def test_neither_a_path_nor_a_name() -> None:
    with pytest.raises(UsageError, match="int given"):
        Bundle.open(5)  # type: ignore[arg-type]


def test_a_damaged_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("broken", "no_such_module_anywhere", "dovit.models")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [entry])
    with pytest.raises(EnvironmentProblem, match="install it again"):
        chosen_bundle("broken")
