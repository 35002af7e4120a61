"""`dovit cache ls|prune` through the real command line, on engines that a stand-in has built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovit_deploy.cli import _application, _run
from dovit_deploy.engines.tensorrt import package as tensorrt_package
from dovit_deploy.runtime.choices import ChoiceCache
from dovit_deploy.runtime.latencies import LatencyCache, TimedAs
from dovit_deploy.runtime.latency import StageTime
from dovit_deploy.runtime.remembered import Here
from tests.runtime.test_choices import CHOICE, SITUATION
from tests.runtime.test_latency import model_of


def command(*arguments: object) -> int:
    return _run(_application(), [str(argument) for argument in arguments])


def test_ls_and_prune(faked: Path, single_copy: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("cache", "ls") == 0
    assert "0 entries" in capsys.readouterr().out
    assert command("build", single_copy) == 0
    assert command("build", single_copy, "--precision", "fp32") == 0
    capsys.readouterr()
    assert command("cache", "ls") == 0
    assert capsys.readouterr().out.count("usable") == 2
    assert command("cache", "prune") == 0
    assert "0 entries removed" in capsys.readouterr().out
    one, other = sorted(path for path in faked.iterdir() if path.is_dir())
    (one / "stage0.engine").write_bytes(b"cut")
    assert command("cache", "ls") == 0
    assert "damaged" in capsys.readouterr().out
    assert command("cache", "prune") == 0
    assert f"removed {one.name}" in capsys.readouterr().out
    monkeypatch.setattr(tensorrt_package, "installed_version", lambda engine: "1.8.0")
    assert command("cache", "ls") == 0
    assert "1.8.0 is installed" in capsys.readouterr().out
    assert command("cache", "prune") == 0
    assert not other.exists()


def test_prune_all(faked: Path, single_copy: Path, capsys) -> None:
    assert command("build", single_copy) == 0
    assert command("cache", "prune", "--all") == 0
    assert "1 entry removed" in capsys.readouterr().out
    assert not [path for path in faked.iterdir() if path.is_dir()]


def test_reports_name_the_engines(faked: Path, single_copy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert command("build", single_copy, "--quiet") == 0
    assert command("cache", "ls", "--json", report) == 0
    (entry,) = json.loads(report.read_text())["entries"]
    assert (Path(entry["folder"]), entry["unusable"]) == (faked / entry["key"], None)
    assert command("cache", "prune", "--all", "--json", report) == 0
    assert json.loads(report.read_text()) == {
        "removed": [entry["key"]],
        "freed_bytes": entry["bytes"],
        "choices_removed": 0,
        "latency_models_removed": 0,
    }


def test_choices_are_listed_and_those_of_other_versions_pruned(faked: Path, tmp_path: Path, capsys) -> None:
    del faked
    now = Here.now()
    situation = SITUATION.model_copy(update={"here": now})
    old = SITUATION.model_copy(
        update={"here": now.model_copy(update={"versions": {**now.versions, "dovit-deploy": "0.0"}})}
    )
    cache, report = ChoiceCache(), tmp_path / "report.json"
    cache.remember(situation, CHOICE)
    cache.remember(old, CHOICE)
    assert command("cache", "ls", "--json", report) == 0
    printed = capsys.readouterr().out
    assert "2 choices of engines" in printed
    assert "dovit-deploy was 0.0" in printed
    assert [entry["outdated"] is None for entry in json.loads(report.read_text())["choices"]] == [True, False]
    assert command("cache", "prune", "--json", report) == 0
    assert json.loads(report.read_text())["choices_removed"] == 1
    assert [entry.situation for entry in cache.entries()] == [situation]
    assert command("cache", "prune", "--all") == 0
    assert not cache.path.exists()


def test_latency_models_are_listed_and_those_of_other_versions_pruned(faked: Path, tmp_path: Path, capsys) -> None:
    del faked
    now = Here.now()
    fitted = TimedAs(here=now, bundle="abc", engine="onnxruntime", precision="fp32", threads=1)
    old = fitted.model_copy(update={"here": now.model_copy(update={"cpu": "another"})})
    cache, report = LatencyCache(), tmp_path / "report.json"
    for situation in (fitted, old):
        cache.remember(situation, model_of(StageTime(constant=1, linear=0, quadratic=0)))
    assert command("cache", "ls", "--json", report) == 0
    printed = capsys.readouterr().out
    assert "2 latency models" in printed
    assert "measured on another machine (another" in printed
    assert [entry["outdated"] is None for entry in json.loads(report.read_text())["latency_models"]] == [True, False]
    assert command("cache", "prune", "--json", report) == 0
    assert json.loads(report.read_text())["latency_models_removed"] == 1
    assert [entry.situation for entry in cache.entries()] == [fitted]
    assert command("cache", "prune", "--all") == 0
    assert not cache.path.exists()


def test_a_damaged_file_of_choices_is_pruned(faked: Path, capsys) -> None:
    path = ChoiceCache().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{")
    assert command("cache", "ls") == 0
    assert "0 choices" in capsys.readouterr().out
    assert command("cache", "prune") == 0
    assert not path.exists()
