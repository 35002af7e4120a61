"""The script that makes another model the default one, on copies of the files that it changes."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_default", ROOT / "models" / "make_default.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(script, tmp_path):
    """The files of this clone, and one more model."""
    old = script.default_name()
    for name in (*script.INSTALLED_BY, f"models/{old}/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    new = tmp_path / "models" / "another-one" / "pyproject.toml"
    new.parent.mkdir()
    new.write_text(f'[project]\nname = "x"\n\n{script.GROUP}another-one = "dovit_model_another_one"\n')
    return tmp_path


def contents(clone):
    return {path: path.read_text() for path in clone.rglob("*") if path.is_file()}


def test_every_line_that_installs_the_default_model_names_the_new_one(script, clone) -> None:
    old = script.default_name(clone)
    card = f"[a card](models/{old}/MODEL_CARD.md)"
    with (clone / "README.md").open("a") as readme:
        readme.write(f"{card}\n")
    before = contents(clone)
    left = script.make_default("another-one", clone)
    assert script.default_name(clone) == "another-one"
    assert (
        'default = "dovit_model_another_one"\nanother-one = '
        in (clone / "models/another-one/pyproject.toml").read_text()
    )
    changed = contents(clone)
    for name in ("Dockerfile", "README.md", "docs/troubleshooting.md", "dovit_deploy/bundle/installed.py"):
        text = changed[clone / name]
        assert "./models/another-one" in text and f"./models/{old}" not in text
    # What is said about the old model stays its own, and is listed.
    assert card in changed[clone / "README.md"]
    assert f"README.md:{len(changed[clone / 'README.md'].splitlines())}" in left
    script.make_default(old, clone)
    assert contents(clone) == before


def test_an_interrupted_change_is_finished_by_the_next(script, clone, monkeypatch) -> None:
    before, old = contents(clone), script.default_name(clone)
    write, files = script.write_text, len(script.INSTALLED_BY) + 2
    for most in range(1, files):
        written = []

        def stopped(path, text, *, written=written, most=most):
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(path)
            write(path, text)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(script, "write_text", stopped)
            script.make_default("another-one", clone)
        script.make_default("another-one", clone)
        assert script.default_name(clone) == "another-one"
        script.make_default(old, clone)
        assert contents(clone) == before


def test_a_distribution_of_another_name_changes_nothing(script, clone) -> None:
    before = contents(clone)
    for name in ("another-one/", "another"):
        with pytest.raises((FileNotFoundError, ValueError)):
            script.make_default(name, clone)
    assert contents(clone) == before
    project = clone / "models" / "another-one" / "pyproject.toml"
    project.write_text("[project]\n")
    with pytest.raises(ValueError, match="no entry point"):
        script.make_default("another-one", clone)
    assert script.default_name(clone) != "another-one"


def test_a_model_without_a_distribution_changes_nothing(script, clone) -> None:
    before = contents(clone)
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        script.make_default("nothing-here", clone)
    with pytest.raises(ValueError, match="is the default model already"):
        script.make_default(script.default_name(clone), clone)
    assert contents(clone) == before
