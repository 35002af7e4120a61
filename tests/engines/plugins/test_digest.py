"""Which plugins serve, and what their digest depends on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.plugins import kernels, library
from dovit_deploy.engines.plugins.library import (
    VARIABLE,
    compiled_library,
    plugin_digest,
    registered_plugins,
)
from dovit_deploy.engines.plugins.loaded import HeldKernels
from dovit_deploy.engines.tensorrt.record import BuildRequest, engine_key
from dovit_deploy.errors import EnvironmentProblem, PackageMissing
from tests.engines.tensorrt.bindings import RTX, FakeOf, all_bindings
from tests.engines.tensorrt.fake_builder import fake_package


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_change_of_a_kernel_makes_other_engines(tiny_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's bytes may be the same, what they call is not."""
    bundle = Bundle.open(tiny_bundle_path)
    before = {plugins: engine_key(bundle, BuildRequest(plugins=plugins), fake_package()) for plugins in (True, False)}
    source = kernels.kernel_source()
    monkeypatch.setattr(library, "kernel_source", lambda: source.replace("kItemsPerThread = 4", "kItems = 8"))
    after = {plugins: engine_key(bundle, BuildRequest(plugins=plugins), fake_package()) for plugins in (True, False)}
    assert after[True].name != before[True].name
    assert after[False].name == before[False].name, "engines without plugins do not depend on them"


@pytest.mark.parametrize(
    ("name", "other"),
    [("BEHAVIOUR", -1), ("VERSION", "-1"), ("DOMAIN", "other"), ("KINDS", ()), ("kernel_source", lambda: "other")],
)
def test_everything_that_decides_what_plugins_do_is_in_the_digest(
    name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plugin_digest()
    monkeypatch.setattr(library, name, other)
    assert plugin_digest() != before


def test_names_of_files_are_not_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move of the code must not make every user's engines build again."""
    before = plugin_digest()
    monkeypatch.setattr(library, "__file__", "/elsewhere/moved.py")
    assert plugin_digest() == before
    assert "dovit_compact_8" in kernels.kernel_source()


def test_a_compiled_library_is_its_own_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = plugin_digest()
    library = tmp_path / "libdovit_plugins.so"
    library.write_bytes(b"one")
    monkeypatch.setenv(VARIABLE, str(library))
    one = plugin_digest()
    library.write_bytes(b"other")
    assert len({python, one, plugin_digest()}) == 3


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    for asked in (compiled_library, plugin_digest, lambda: registered_plugins(package(None))):
        with pytest.raises(EnvironmentProblem, match=rf"{VARIABLE}: no plugin library at .*none.so; .*make plugins"):
            asked()


class Registry(FakeOf, of="IPluginRegistry"):
    def __init__(self, handle) -> None:
        super().__init__(all_bindings()[RTX])
        self._handle, self._loaded = handle, []

    def load_library(self, plugin_path: str):
        self._loaded.append(plugin_path)
        return self._handle


def package(handle):
    registry = Registry(handle)
    return fake_package(fakes={"get_plugin_registry": lambda: registry})


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "text.so"))
    with pytest.raises(EnvironmentProblem, match=r"does not load .*text.so; compile it for tensorrt-rtx 1.7.1"):
        registered_plugins(package(None))


def test_a_library_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.so").write_text("library")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "good.so"))
    made = package("handle")
    assert [registered_plugins(made) for _ in range(2)] == ["handle"] * 2
    assert made.module.get_plugin_registry()._loaded == [str(tmp_path / "good.so")]


def test_python_plugins_need_what_compiles_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(PackageMissing, match="pip install cuda-bindings"):
        HeldKernels()
