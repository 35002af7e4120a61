"""TensorRT for RTX itself, as far as it goes without a driver: what it says of engines becomes our errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.cuda.driver import gpu_device
from dovit_deploy.engines.plugins.library import VARIABLE, registered_plugins
from dovit_deploy.engines.tensorrt.build import build_engines
from dovit_deploy.engines.tensorrt.context import TensorRtEngine
from dovit_deploy.engines.tensorrt.package import TensorRtPackage, tensorrt_package
from dovit_deploy.engines.tensorrt.record import BuildRequest
from dovit_deploy.engines.tensorrt.store import EngineCache
from dovit_deploy.errors import DovitError, EngineInvalid, EnvironmentProblem, ProviderMissing


def has_gpu() -> bool:
    try:
        gpu_device()
    except ProviderMissing:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (requirements-dev.txt)"
    ),
    pytest.mark.skipif(has_gpu(), reason="there is a GPU"),
]


@pytest.fixture(scope="module")
def package() -> TensorRtPackage:
    return tensorrt_package("tensorrt-rtx")


@pytest.fixture(scope="module")
def plan(package: TensorRtPackage, dense_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real engine."""
    bundle, cache = Bundle.open(dense_bundle_path), EngineCache(tmp_path_factory.mktemp("cache"))
    engines, _ = build_engines(bundle, BuildRequest(), package=package, cache=cache, progress=lambda step: None)
    return engines.engine_path("stage0").read_bytes()


def test_without_a_driver(package: TensorRtPackage, plan: bytes) -> None:
    """Error 35 of the CUDA runtime."""
    with pytest.raises(ProviderMissing, match=r"stage0: .*cudaError 35: CUDA driver version.*nvidia-smi") as caught:
        TensorRtEngine(package, plan, name="stage0")
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_what_is_no_engine(damage: str, package: TensorRtPackage, plan: bytes) -> None:
    """A sidecar would have shown it; TensorRT refuses it too, with a driver or without."""
    bad = plan[: len(plan) // 2] if damage == "cut" else b"\x7fELF" * 500
    with pytest.raises(EngineInvalid, match=r"stage0: .*Serialization.*build it again") as caught:
        TensorRtEngine(package, bad, name="stage0")
    assert caught.value.exit_code == 6


def test_a_plugin_library_that_is_none(
    package: TensorRtPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "text.so"))
    with pytest.raises(EnvironmentProblem, match=r"TensorRT does not load .*text\.so; compile it for tensorrt-rtx"):
        registered_plugins(package)


def test_nothing_at_all(package: TensorRtPackage) -> None:
    with pytest.raises(DovitError, match="stage0: "):
        TensorRtEngine(package, b"", name="stage0")
