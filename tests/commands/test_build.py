"""`dovit build` through the real command line; a stand-in does the building, except in one test."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from dovit_deploy.cli import _application, _run
from dovit_deploy.commands.build import profile_text
from tests.conftest import Run
from tests.engines.tensorrt.fake_builder import VARIABLE


def command(*arguments: object) -> int:
    return _run(_application(), [str(argument) for argument in arguments])


def test_a_table_a_report_and_the_next_command(faked: Path, bundle_copy: Path, capsys, tmp_path: Path) -> None:
    assert command("build", bundle_copy, "--json", tmp_path / "report.json") == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("stage0", "stage1", "stage2", "dense")] == [
        "stage0",
        "stage1",
        "stage2",
        "dense",
    ]
    assert "none of them has been run" in out
    assert "building stage0 (1 of 4)" in err
    assert f"next: dovit run YOUR_IMAGE_OR_VIDEO --bundle {bundle_copy} --engine tensorrt-rtx --precision fp16" in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["built"] is True
    assert [engine["graph"] for engine in report["engines"]] == ["stage0", "stage1", "stage2", "dense"]
    assert Path(report["folder"]).parent == faked
    assert command("build", bundle_copy) == 0
    assert "from the cache" in capsys.readouterr().out


def test_into_the_bundle(faked: Path, single_copy: Path, capsys) -> None:
    assert command("build", single_copy, "--into-bundle", "--quiet") == 0
    out, err = capsys.readouterr()
    assert err == ""
    (folder,) = (single_copy / "engines").iterdir()
    assert str(folder.resolve()) in out
    assert (folder / "stage0.engine").is_file()
    assert (folder / "stage0.json").is_file()
    assert command("build", single_copy, "--into-bundle", "--quiet") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "openvino"], "engines are built for: tensorrt, tensorrt-rtx"),
        (["--precision", "int8"], "engines are built in: fp16, fp32"),
        (["--buckets", "8,x"], "token counts separated by commas"),
        (["--buckets", "0"], "token counts separated by commas"),
        (["--buckets", "900"], "runs 1 to 21 tokens"),
        (["--compute-capability", "86"], "as in 8.6,12.0"),
        (["--compute-capability", "9.0"], "it builds for: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        (["--json", "/nowhere/report.json"], "existing folder"),
    ],
)
def test_usage(arguments: list[str], words: str, faked: Path, bundle_copy: Path, capsys) -> None:
    assert command("build", bundle_copy, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len([line for line in error.splitlines() if not line[:8].strip().startswith("0.")]) <= 2


def test_a_bundle_that_cannot_be_trusted(faked: Path, bundle_copy: Path, capsys) -> None:
    (bundle_copy / "stage0.onnx").write_bytes(b"x")
    assert command("build", bundle_copy) == 6
    assert command("build", bundle_copy / "none") == 3


def test_a_builder_that_dies(faked: Path, single_copy: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "segfault")
    assert command("build", single_copy, "--quiet") == 5
    assert capsys.readouterr().err.startswith("error: stage0: the process that builds it was ended by SIGSEGV")


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_without_the_package(engine: str, dovit: Run, bundle_copy: Path, tmp_path: Path) -> None:
    """An import that is blocked, in the real command line."""
    blocked = tmp_path / "blocked" / engine.replace("-", "_")
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text(f"raise ModuleNotFoundError('blocked', name={blocked.name!r})\n")
    path = os.pathsep.join(part for part in (str(blocked.parent), os.environ.get("PYTHONPATH", "")) if part)
    result = dovit("build", bundle_copy, "--engine", engine, PYTHONPATH=path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert result.returncode == 5, result.stderr
    assert f"pip install 'dovit-deploy[{engine}]'" in result.stderr
    assert not (tmp_path / "xdg").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_for_real(dovit: Run, dense_bundle_path: Path, tmp_path: Path) -> None:
    result = dovit(
        "build", dense_bundle_path, "--json", "report.json", XDG_CACHE_HOME=str(tmp_path / "xdg"), timeout=600
    )
    assert result.returncode == 0, result.stderr
    (engine,) = json.loads((tmp_path / "report.json").read_text())["engines"]
    assert engine["layers"]["host_syncs"] == 0
    assert engine["engine"] == "tensorrt-rtx"
    listed = dovit("cache", "ls", XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert "usable" in listed.stdout


def test_profiles_in_words() -> None:
    assert profile_text(1, 8, 21) == "1-8-21"
    assert profile_text(16, 16, 16) == "16"
