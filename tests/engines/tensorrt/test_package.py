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
from dovit_deploy.engines.tensorrt.builder import built_engine, configure
from dovit_deploy.engines.tensorrt.package import (
    DISTRIBUTIONS,
    child_environment,
    library_folder,
    tensorrt_package,
)
from dovit_deploy.errors import EngineBuildFailed, EnvironmentProblem, PackageMissing, ProviderMissing, UsageError
from tests.engines.tensorrt.bindings import RTX, Bindings, FakeOf, all_bindings, fake_module
from tests.engines.tensorrt.fake_builder import fake_package


def install(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setattr(packages, "load", lambda name: module)


def test_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_module(all_bindings()[RTX]))
    package = tensorrt_package("tensorrt-rtx")
    found = package.capabilities
    assert found.compute_capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    assert found.runtime_config and found.given_memory and found.reports_capturable and found.plugins
    assert package.network_flags == 1
    assert package.compute_capability("12.0") == 120
    with pytest.raises(UsageError, match=r"'9\.0'.*7\.5, 8\.0, 8\.6"):
        package.compute_capability("9.0")


@pytest.mark.parametrize(("version", "flags"), [("10.0.1", 2), ("10.13.3.9", 2), ("11.4.0.106", 1)])
def test_tensorrt(version: str, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No version has what RTX has in its runtime configuration; the flags have other numbers in 11."""
    install(monkeypatch, fake_module(all_bindings()[f"tensorrt {version}"]))
    package = tensorrt_package("tensorrt")
    assert package.network_flags == flags
    assert not package.capabilities.runtime_config and not package.capabilities.reports_capturable
    assert package.capabilities.given_memory == (version != "10.0.1")
    assert package.capabilities.plugins
    with pytest.raises(UsageError, match="this machine's GPU only"):
        package.compute_capability("8.6")


class FakeBuilderConfig(FakeOf, of="IBuilderConfig"):
    """A new configuration: TF32 is on."""

    profiling_verbosity = None

    def __init__(self, bindings: Bindings, flags: set[int]) -> None:
        super().__init__(bindings)
        self._flags = flags

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(flag)


@pytest.mark.parametrize("version", list(all_bindings()))
def test_no_engine_is_built_with_tf32(version: str) -> None:
    """The flags have other numbers in each version; RTX alone can promise that work can be captured."""
    bindings = all_bindings()[version]
    package = fake_package(bindings=bindings)
    flags = package.module.BuilderFlag
    for capturable in (True, False):
        on = {flags.TF32}
        configure(package, FakeBuilderConfig(bindings, on), capturable=capturable)
        assert on == ({flags.REQUIRE_USER_ALLOCATION} if capturable and version == RTX else set())


def test_a_builder_that_does_not_start(tmp_path: Path) -> None:
    """With a driver that is too old: the bindings raise, and the reason is in the log."""

    class Logger:
        INTERNAL_ERROR, ERROR = 0, 1

    def builder(logger) -> None:
        logger.log(Logger.ERROR, "CUDA initialization failure\nwith error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    package = fake_package("tensorrt", fakes={"ILogger": Logger, "Builder": builder})
    with pytest.raises(EngineBuildFailed, match=r"tensorrt 1\.7\.1 does not start: CUDA .* with error: 35$"):
        built_engine(package, tmp_path / "stage0.onnx", profiles=(), compute_capabilities=())


def test_gpus_that_a_package_does_not_support() -> None:
    rtx, plain = fake_package("tensorrt-rtx"), fake_package("tensorrt")
    for capability in ("7.5", "8.0", "8.9", "12.0", "12.1", "13.0"):
        rtx.check_gpu(capability)
    for capability in ("7.0", "8.7", "9.0", "10.0"):
        plain.check_gpu(capability)
        with pytest.raises(ProviderMissing, match=f"compute capability {capability}; it runs on 7.5, .* and later"):
            rtx.check_gpu(capability)


@pytest.mark.parametrize(("engine", "version"), [("tensorrt-rtx", "1.6.9"), ("tensorrt", "8.6.1")])
def test_too_old(engine: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, types.SimpleNamespace(__version__=version))
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
    install(monkeypatch, fake_module(all_bindings()[RTX]))
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
