"""What the docs say to install is enough: `[export]` exports, the Dockerfile's steps run its demo without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.commands.conftest import python_path
from tests.conftest import Run
from tests.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def steps() -> list[tuple[str, str]]:
    """(instruction, rest) of each line of the Dockerfile."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def new_environment(folder: Path) -> dict[str, str]:
    """A fresh environment in `folder`, as the variables of a shell in which it is active."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}


def context(folder: Path) -> Path:
    """What a build would copy: the checkout without what .dockerignore leaves out, at the top or (`**/`) anywhere."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    top = [pattern for pattern in patterns if not pattern.startswith("**/")]

    def left_out(where: str, names: list[str]) -> list[str]:
        here = anywhere + (top if Path(where) == ROOT else [])
        return [name for name in names if any(fnmatch(name, pattern) for pattern in here)]

    shutil.copytree(ROOT, folder, ignore=left_out)
    return folder


def test_the_dockerfile_is_made_of_steps_that_are_tested() -> None:
    assert [instruction for instruction, _ in steps()] == ["FROM", "WORKDIR", "COPY", "RUN", "RUN", "CMD"]
    installed = next(rest for instruction, rest in steps() if instruction == "RUN")
    for path in re.findall(r"(?<=\s)'?\./?([\w/-]*)", installed):
        assert (ROOT / path / "pyproject.toml").is_file()


@pytest.mark.slow
def test_the_dockerfiles_steps_run_the_demo_without_a_network(tmp_path: Path) -> None:
    checkout, environment = context(tmp_path / "checkout"), new_environment(tmp_path / "env")
    for instruction, rest in steps():
        if instruction == "RUN":
            subprocess.run(rest, shell=True, cwd=checkout, env=environment, check=True)
    (command,) = (json.loads(rest) for instruction, rest in steps() if instruction == "CMD")
    words = [str(tmp_path / "out" / "street") if word == "/out/street" else word for word in command]
    words[0] = str(tmp_path / "env" / "bin" / words[0])
    subprocess.run(words, cwd=checkout, env={**environment, **NO_NETWORK}, check=True)
    assert (tmp_path / "out" / "street" / "overlay.mp4").stat().st_size > 0
    assert json.loads((tmp_path / "out" / "street" / "summary.json").read_text())["frames"] == 90


def save_tiny_checkpoint(folder: Path) -> None:
    from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
    from tests.bundles import tiny_checkpoint
    from tests.tiny import tiny_spec

    checkpoint = tiny_checkpoint(tiny_spec(gates=(1,), depth=2, head="linear", gate="linear"))
    config = OwnConfig(
        spec=checkpoint.spec,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        thresholds=checkpoint.thresholds,
    )
    save_checkpoint(folder, config, dict(checkpoint.state))


@pytest.mark.slow
def test_what_export_brings_is_enough_to_export(tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "env")
    install = [str(tmp_path / "env" / "bin" / "pip"), "install", "--quiet", f"{ROOT}[export]"]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt")], env=environment, cwd=tmp_path, check=True)
    save_tiny_checkpoint(tmp_path / "own")
    words = [str(tmp_path / "env" / "bin" / "dovit"), "export", "own", "-o", "x.dovit"]
    subprocess.run(words, env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "x.dovit" / "manifest.json").is_file()


@pytest.mark.slow
def test_an_export_needs_no_package_of_other_extras(dovit: Run, tmp_path: Path) -> None:
    """The same, without the minutes of installing: what `[export]` does not bring cannot be imported."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for module in ("av", "matplotlib", "jinja2"):
        (blocked / f"{module}.py").write_text("raise ImportError('blocked for a test')\n")
    save_tiny_checkpoint(tmp_path / "own")
    done = dovit("export", "own", "-o", "x.dovit", **python_path(blocked))
    assert done.returncode == 0, done.stderr
