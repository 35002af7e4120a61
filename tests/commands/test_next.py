"""Every `next:` line is true: it is run as a shell would read it, and ends well.

Those of `eval` and `calibrate` are followed where these verbs are tested, since both take seconds.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from dovit_deploy.commands.arguments import PLACEHOLDER


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_bundle_path: Path, tiny_bundle_path: Path) -> Path:
    """The current folder: an image, a data set and bundles under names that a shell would take apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(dense_bundle_path, "my dense.dovit")
    shutil.copytree(tiny_bundle_path, "it's $tiny.dovit")
    Image.fromarray(np.full((60, 80, 3), 90, dtype=np.uint8)).save("an image;.png")
    return tmp_path


def followed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a verb; the words behind its `next: `."""
    capsys.readouterr()
    assert _run(_application(), [str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("next: ")]
    return line.removeprefix("next: ")


def words(line: str) -> list[str]:
    """A suggested command as a shell reads it, without the program's name; the placeholder becomes the image."""
    program, *others = shlex.split(line)
    assert program == "dovit"
    return ["an image;.png" if word == PLACEHOLDER else word for word in others]


def chain(capsys: pytest.CaptureFixture[str], *arguments: object, steps: int) -> list[str]:
    """The verbs of the commands that follow one another, each run."""
    verbs = []
    for _ in range(steps):
        arguments = tuple(words(followed(capsys, *arguments)))
        verbs.append(str(arguments[0]))
    capsys.readouterr()
    assert _run(_application(), [str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return verbs


def test_from_a_run_to_its_speed_and_back(folder, capsys):
    verbs = chain(capsys, "run", "an image;.png", "--bundle", "it's $tiny.dovit", "--engine", "torch", steps=3)
    assert verbs == ["bench", "bench", "run"]
    assert (folder / "bench.json").is_file()


def test_from_a_bundle_to_a_run(folder, capsys):
    assert chain(capsys, "inspect", "it's $tiny.dovit", steps=2) == ["run", "bench"]
    assert chain(capsys, "inspect", "it's $tiny.dovit/stage0.onnx", steps=1) == ["inspect"]
    assert chain(capsys, "inspect", "an image;.png", "-v", steps=1) == ["run"]


def test_from_an_export_to_a_run(folder, capsys):
    assert chain(capsys, "export", "my dense.dovit", "-o", "b c.dovit", steps=1) == ["run"]


def test_from_the_cache_and_back(folder, capsys):
    assert chain(capsys, "cache", "prune", steps=1) == ["cache"]
