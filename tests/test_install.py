"""Who already has PyTorch, ONNX Runtime and OpenCV keeps them: the base install brings none and is enough to run."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
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


@pytest.mark.exhaustive
def test_a_user_who_has_everything_keeps_it(tiny_bundle_path: Path, tmp_path: Path) -> None:
    """A fresh environment that sees this one's packages as the user's own; pip may add this package and no other."""
    subprocess.run([sys.executable, "-m", "venv", "env"], cwd=tmp_path, check=True)
    python = tmp_path / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "users_own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--ignore-installed",
        "--no-deps",
    ]
    planned = subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--dry-run",
            "--report",
            "-",
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {entry["metadata"]["name"] for entry in json.loads(planned.stdout)["install"]}
    assert names <= {"dovit-deploy"}
    subprocess.run([*install, str(ROOT)], check=True)
    where = [python, "-c", "import dovit_deploy; print(dovit_deploy.__file__)"]
    home = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) in home, "the package that runs must be the one just installed"
    source = tmp_path / "x.png"
    subprocess.run(
        [python, "-c", f"from PIL import Image; Image.new('RGB', (64, 48)).save({str(source)!r})"], check=True
    )
    command = [python, "-m", "dovit_deploy", "run", source, "--bundle", tiny_bundle_path, "-o", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "masks" / "x.png").is_file()
