"""An engine is one entry: what is added by a package of its own is offered, examined and run like ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dovit_deploy import cli
from dovit_deploy.engines import registry
from dovit_deploy.engines.registry import ENGINES, engine_entry, engine_names
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.measure import doctor
from dovit_deploy.measure.doctor import Finding, finding_of, probe_command
from tests.commands.conftest import python_path

TOY = '''
"""An engine of a package of its own: ONNX Runtime by another name."""
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.engines.registry import EngineEntry

ENTRY = EngineEntry("toy_engine", (), ("fp32", "int8"), "a toy", install="pip install toy-engine")


class ToyBackend(OnnxRuntimeBackend):
    name = "toy"


def backend(*, precision, threads):
    made = ToyBackend(threads=threads, fast=False)
    made.precision = precision
    return made


def probe():
    return "toy 1.0"
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in which the distribution `toy-engine` is installed, searched by this process."""
    folder = tmp_path / "site"
    information = folder / "toy_engine-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{registry.GROUP}]\ntoy = toy_engine:ENTRY\n")
    (folder / "toy_engine.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "toy_engine", raising=False)
    return folder


def run(*words: object) -> int:
    return cli._run(cli._application(), [str(word) for word in words])


def on_one_line(text: str) -> str:
    """Help as one line, without the frames that Rich draws."""
    return re.sub(r"[│\s]+", " ", text)


@pytest.mark.parametrize("verb", ["run", "bench", "eval"])
def test_help_lists_our_engines_and_those_that_are_installed(verb, site, capsys):
    assert run(verb, "--help") == 0
    shown = on_one_line(capsys.readouterr().out)
    for name, entry in ENGINES.items():
        assert f"{name} ({entry.purpose})" in shown
    assert "Also installed: toy." in shown


def test_help_names_no_others_where_there_are_none(capsys):
    assert run("run", "--help") == 0
    assert "Also installed" not in on_one_line(capsys.readouterr().out)


def test_a_run_by_an_engine_of_another_package(site, tiny_bundle_path, tmp_path):
    Image.new("RGB", (72, 56), (90, 90, 90)).save(tmp_path / "a.png")
    words = ("run", tmp_path / "a.png", "--bundle", tiny_bundle_path, "-o", tmp_path / "out", "--quiet")
    assert run(*words, "--engine", "toy", "--precision", "int8") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["engine"], summary["precision"]) == ("toy", "int8")


def test_errors_list_what_is_installed(site, tiny_bundle_path, tmp_path, capsys):
    Image.new("RGB", (72, 56)).save(tmp_path / "a.png")
    words = ("run", tmp_path / "a.png", "--bundle", tiny_bundle_path, "-o", tmp_path / "out")
    assert run(*words, "--engine", "nope") == 2
    assert f"there are: {', '.join([*ENGINES, 'toy'])}" in capsys.readouterr().err
    assert run(*words, "--engine", "toy", "--precision", "fp16") == 2
    assert "engine toy does not run precision 'fp16'; it runs: fp32, int8" in capsys.readouterr().err
    assert run("bench", tiny_bundle_path, "--engine", "nope") == 2
    assert "tensorrt, toy" in capsys.readouterr().err


def test_bench_takes_its_precisions(site, tiny_bundle_path, tmp_path):
    words = ("bench", tiny_bundle_path, "--engine", "onnxruntime,toy", "--precision", "fp32", "--repeat", 1, "--quiet")
    assert run(*words, "--json", tmp_path / "bench.json") == 0
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert [result["engine"] for result in results] == ["onnxruntime", "toy"]


def test_doctor_has_a_row_for_it(site, monkeypatch):
    def findings(names):
        return {name: Finding(name=name, works=True, detail="") for name in names}

    monkeypatch.setattr(doctor, "findings", findings)
    rows = {check.name: check for check in doctor.examination().engines}
    assert list(rows) == [*ENGINES, "toy"] and rows["toy"].purpose == "a toy"


def test_its_probe_runs_in_a_process_of_its_own(site, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", python_path(site)["PYTHONPATH"])
    found = finding_of("toy", probe_command("toy"), 60)
    assert (found.works, found.detail) == (True, "toy 1.0")


@pytest.mark.parametrize(
    ("source", "reason"), [("import nowhere_at_all\n", "nowhere_at_all"), ("ENTRY = 1\n", "is no EngineEntry")]
)
def test_a_broken_engine_of_another_package_harms_nothing_else(site, source, reason, monkeypatch):
    (site / "toy_engine.py").write_text(source)
    with pytest.raises(EnvironmentProblem, match=rf"engine toy of 'toy-engine'.*{reason}.*(reinstall|update)"):
        engine_entry("toy")
    assert engine_entry("onnxruntime") is ENGINES["onnxruntime"]
    assert engine_names() == (*ENGINES, "toy"), "listed without being imported"
    monkeypatch.setattr(
        doctor, "findings", lambda names: {name: Finding(name=name, works=name != "toy", detail="") for name in names}
    )
    row = doctor.examination().engines[-1]
    assert not row.works and reason in row.detail


def test_no_package_takes_a_name_of_ours(site):
    (site / "toy_engine-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nonnxruntime = toy_engine:ENTRY\n"
    )
    assert engine_entry("onnxruntime") is ENGINES["onnxruntime"] and engine_names() == tuple(ENGINES)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="unknown engine 'nope'; there are: onnxruntime, "):
        engine_entry("nope")


def test_the_table_costs_the_start_nothing():
    program = (
        "import sys; import dovit_deploy.engines.registry; "
        "print([name for name in ('numpy', 'importlib.metadata', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_engines_are_named_in_the_table_alone():
    """Neither the verbs nor the examination know an engine by name, TensorRT's own verbs and defaults apart."""
    package = Path(registry.__file__).parents[1]
    for path in (
        package / "commands" / "arguments.py",
        package / "measure" / "doctor.py",
        package / "measure" / "probe.py",
    ):
        text = re.sub(r"RIVALS = \(.*?\n\)\n", "", path.read_text(), flags=re.DOTALL)
        for name in ENGINES:
            assert f'"{name}"' not in text, f"{path.name} names {name}"
