from __future__ import annotations

import json

from dovit_deploy.engines.registry import ENGINES
from tests.commands.conftest import python_path


def test_this_machine_can_run(dovit, tmp_path):
    done = dovit("doctor", "--json", "doctor.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["can_run"] and [engine["name"] for engine in report["engines"]] == list(ENGINES)
    assert report["engines"][0]["works"] and report["images"]["works"]
    assert {"cpu", "cores", "features", "memory_free_gb"} <= report["machine"].keys()
    assert {entry["name"] for entry in report["encoders"]} == {"h264", "mp4v"}
    for expected in ("onnxruntime", "optional packages", "default model"):
        assert expected in done.stdout
    assert "next: " in done.stderr
    assert "\x1b" not in done.stdout and "─" not in done.stdout, "plain lines where nobody watches"


def test_without_an_engine_nothing_can_run(dovit, tmp_path, without):
    done = dovit("doctor", "--json", "doctor.json", **without("onnxruntime", "openvino", "torch"))
    assert done.returncode == 5
    assert "no engine works" in done.stderr and "Traceback" not in done.stderr and "pip install" in done.stderr
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert not report["can_run"] and not any(engine["works"] for engine in report["engines"])
    assert "blocked for a test" in report["engines"][0]["detail"]


def test_without_pyav_the_other_encoder_is_named(dovit, tmp_path, without):
    done = dovit("doctor", "--json", "doctor.json", **without("av"))
    assert done.returncode == 0, done.stderr
    encoders = {entry["name"]: entry for entry in json.loads((tmp_path / "doctor.json").read_text())["encoders"]}
    assert not encoders["h264"]["works"] and encoders["h264"]["mend"] and encoders["mp4v"]["works"]
    assert "to fix: pip install" in done.stdout


def test_two_onnxruntimes(dovit, tmp_path):
    for name in ("onnxruntime-gpu", "onnxruntime"):
        information = tmp_path / "site" / f"{name.replace('-', '_')}-1.20.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.20\n")
    done = dovit("doctor", **python_path(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    line = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert f"to fix: {line}" in done.stdout and f"next: {line}" in done.stderr
    assert "conflict: onnxruntime-gpu 1.20 and onnxruntime" in done.stdout
