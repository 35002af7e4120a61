"""What is installed: nothing that a user has is overwritten, and the wheel alone is enough, outside any checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT

NEVER_IN_BASE = {"torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "av", "pillow", "cuda-core"}


def requirements(extra: str | None) -> set[str]:
    """Distributions that `pip install dovit-deploy[extra]` asks for."""
    found = set()
    for line in importlib.metadata.requires("dovit-deploy") or ():
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (marker and marker[1]) == extra:
            found.add(re.match(r"[\w-]+", line)[0].lower())  # type: ignore[index]
    return found


def test_the_base_install_is_small_and_overwrites_nothing() -> None:
    base = requirements(None)
    assert base == {"numpy", "typer", "rich", "pydantic", "safetensors", "platformdirs", "filelock"}
    assert not base & NEVER_IN_BASE
    assert not any(name.startswith("opencv") for name in base)


def test_only_headless_opencv_and_one_onnxruntime() -> None:
    assert "onnxruntime" in requirements("cpu")
    assert "onnxruntime-gpu" in requirements("gpu")
    assert "onnxruntime" not in requirements("gpu")
    for extra in ("cpu", "gpu", "video", "export", "train", "report"):
        opencv = {name for name in requirements(extra) if name.startswith("opencv")}
        assert opencv <= {"opencv-python-headless"}


@dataclass(frozen=True)
class Outside:
    """A fresh environment in a folder outside the checkout; this one's packages are the user's own."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` in the folder; nothing of the checkout is on its path."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.python, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done


PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation, by the build back end among the development requirements: no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    arguments = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    subprocess.run([sys.executable, *PIP, *arguments], check=True)
    (path,) = folder.glob("dovit_deploy-*.whl")
    return path


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """The wheel, installed."""
    found = Outside(tmp_path_factory.mktemp("outside"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=found.folder, check=True)
    site = found.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(site) / "users_own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("--python", str(found.python), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    subprocess.run([sys.executable, *PIP, *install], check=True)
    return found


def test_the_wheel_holds_both_packages_and_the_kernels(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("dovit_deploy", "dovit_scenes")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".cuh", ".typed")
    }
    assert sources <= names
    assert {name.split("/")[0] for name in names} - {"dovit_deploy", "dovit_scenes"} == {
        next(name.split("/")[0] for name in names if ".dist-info/" in name)
    }


def test_the_source_distribution_holds_what_it_is_built_and_tested_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        *("dovit_deploy/engines/plugins/token_kernels.cuh", "dovit_deploy/cli.py", "dovit_scenes/__main__.py"),
        *("csrc/token_plugins.cpp", "tests/test_install.py", "docs/architecture.md", "LICENSE", "NOTICE"),
        *("README.md", "CHANGELOG.md", "pyproject.toml"),
    } <= names


def test_the_package_that_runs_is_the_installed_one(outside: Outside) -> None:
    program = "import dovit_deploy, dovit_scenes; print(dovit_deploy.__file__, dovit_scenes.__file__)"
    for path in outside.run("-c", program).stdout.split():
        assert path.startswith(str(outside.folder))


def test_rendering_and_running_need_no_checkout(outside: Outside) -> None:
    """What `make demo` does, on a few frames, with the default model."""
    outside.run("-m", "dovit_scenes", "street.mp4", "--frames", "3", "--seed", "7", "--size", "160x96", "--quiet")
    outside.run("-m", "dovit_deploy", "run", "street.mp4", "-o", "result", "--save", "overlay,tokens", "--quiet")
    summary = json.loads((outside.folder / "result" / "summary.json").read_text())
    assert summary["frames"] == 3
    assert (outside.folder / "result" / "overlay.mp4").stat().st_size > 0


def test_the_kernels_source_and_the_builders_child_are_found(outside: Outside) -> None:
    program = (
        "from dovit_deploy.engines.plugins.kernels import kernel_source\n"
        "from dovit_deploy.engines.tensorrt.build import BUILDER\n"
        "import importlib\n"
        "assert '__global__' in kernel_source()\n"
        "assert callable(importlib.import_module(BUILDER).main)"
    )
    outside.run("-c", program)


@pytest.mark.exhaustive
def test_a_user_who_has_everything_keeps_it(outside: Outside, tiny_bundle_path: Path) -> None:
    """Into an environment that has torch, ONNX Runtime and OpenCV, pip would install this package alone."""
    plan = ("--python", str(outside.python), "install", "--dry-run", "--report", "-", str(ROOT))
    planned = subprocess.run([sys.executable, *PIP, *plan], capture_output=True, text=True, check=True)
    assert {entry["metadata"]["name"] for entry in json.loads(planned.stdout)["install"]} <= {"dovit-deploy"}
    outside.run("-c", "from PIL import Image; Image.new('RGB', (64, 48)).save('x.png')")
    outside.run("-m", "dovit_deploy", "run", "x.png", "--bundle", tiny_bundle_path, "-o", "out")
    assert (outside.folder / "out" / "masks" / "x.png").is_file()
