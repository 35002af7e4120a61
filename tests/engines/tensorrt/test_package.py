"""TensorRT's packages: one that is missing, too old or broken is an error; differences are found by looking at them."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dovit_deploy import packages
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.tensorrt.package import (
    DISTRIBUTIONS,
    child_environment,
    library_folder,
    tensorrt_package,
)
from dovit_deploy.errors import EnvironmentProblem, PackageMissing, ProviderMissing, UsageError


class Empty:
    pass


def fake_module(version: str, *, rtx: bool) -> types.SimpleNamespace:
    """A module with what the real ones have."""
    flags = type("Flags", (), {} if version.startswith("11") else {"STRONGLY_TYPED": 1})
    engine = type("Engine", (), {"create_runtime_config": None} if rtx else {})
    module = types.SimpleNamespace(
        __version__=version,
        NetworkDefinitionCreationFlag=flags,
        ICudaEngine=engine,
        IPluginV3=Empty,
        IPluginCreatorV3One=Empty,
    )
    if rtx:
        module.ComputeCapability = types.SimpleNamespace(NONE=0, CURRENT=1, SM120=2, SM75=3, SM86=4)
    return module


def install(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setattr(packages, "load", lambda name: module)


def test_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_module("1.7.1.116", rtx=True))
    package = tensorrt_package("tensorrt-rtx")
    assert package.capabilities.compute_capabilities == ("7.5", "8.6", "12.0")
    assert package.capabilities.runtime_config
    assert package.network_flags == 2
    assert package.compute_capability("12.0") == 2
    with pytest.raises(UsageError, match=r"'9\.0'.*7\.5, 8\.6, 12\.0"):
        package.compute_capability("9.0")


def test_tensorrt_11_has_strong_typing_without_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_module("11.0.0", rtx=False))
    package = tensorrt_package("tensorrt")
    assert package.network_flags == 0
    with pytest.raises(UsageError, match="this machine's GPU only"):
        package.compute_capability("8.6")


@pytest.mark.parametrize(("engine", "version"), [("tensorrt-rtx", "1.6.9"), ("tensorrt", "8.6.1")])
def test_too_old(engine: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_module(version, rtx=True))
    with pytest.raises(EnvironmentProblem, match=f"{version} is installed, .* or later is needed: pip install"):
        tensorrt_package(engine)


@pytest.mark.parametrize("engine", list(DISTRIBUTIONS))
def test_missing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, DISTRIBUTIONS[engine].module, None)
    with pytest.raises(PackageMissing, match=rf"pip install 'dovit-deploy\[{engine}\]'") as caught:
        tensorrt_package(engine)
    assert caught.value.exit_code == 5


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise OSError("libtensorrt_rtx.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    with pytest.raises(EnvironmentProblem, match=r"do not load: libtensorrt_rtx\.so\.1: cannot open .* --force"):
        tensorrt_package("tensorrt-rtx")


def test_the_library_goes_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = tmp_path / "site" / "tensorrt_rtx_libs"
    libraries.mkdir(parents=True)
    (libraries / "__init__.py").touch()
    (libraries / "libtensorrt_rtx.so.1").write_text("library")
    monkeypatch.syspath_prepend(str(libraries.parent))
    monkeypatch.delitem(sys.modules, "tensorrt_rtx_libs", raising=False)
    install(monkeypatch, fake_module("1.7.1", rtx=True))
    package = tensorrt_package("tensorrt-rtx")
    folder = library_folder(package, home=tmp_path / "cache")
    assert folder is not None
    assert (folder / "libtensorrt_rtx.so").read_text() == "library"
    (folder / "libtensorrt_rtx.so").unlink()
    (folder / "libtensorrt_rtx.so").symlink_to(tmp_path / "elsewhere")
    assert library_folder(package, home=tmp_path / "cache") == folder
    assert (folder / "libtensorrt_rtx.so").read_text() == "library"
    assert [path.name for path in folder.iterdir()] == ["libtensorrt_rtx.so"]


def test_the_folder_comes_first_in_the_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    assert child_environment(Path("/folder"))["LD_LIBRARY_PATH"] == f"/folder{os.pathsep}/before"
    assert child_environment(None)["LD_LIBRARY_PATH"] == "/before"
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert child_environment(Path("/folder"))["LD_LIBRARY_PATH"] == "/folder"


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, dovit_deploy.commands.build, dovit_deploy.engines.tensorrt.build as _\n"
    code += "sys.exit(bool({'tensorrt', 'tensorrt_rtx', 'onnx', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovit_deploy.engines.cuda.driver.DRIVER", "libno_such_driver.so.1")
    with pytest.raises(ProviderMissing, match="no NVIDIA driver"):
        gpu_device()
