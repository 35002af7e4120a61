from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.errors import EncoderMissing
from dovit_deploy.measure import probe
from dovit_deploy.measure.probing import finding_of, findings, probe_command


def tried(program, *, limit=30.0):
    return finding_of("x", [sys.executable, "-c", program], limit)


def test_what_works_tells_its_last_line():
    found = tried("print('noise'); print('1.2.3')")
    assert found.works and found.detail == "1.2.3"


def test_a_crash_is_reported():
    found = tried("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert not found.works and found.detail == "crashed with SIGSEGV"


def test_an_exception_is_reported_by_its_last_line():
    found = tried("raise ImportError('libGL.so.1: cannot open shared object file')")
    assert not found.works and "libGL.so.1" in found.detail


def test_a_silent_failure_tells_its_code():
    assert tried("import sys; sys.exit(3)").detail == "left with code 3"


def test_what_hangs_is_stopped():
    found = tried("import time; time.sleep(60)", limit=0.5)
    assert not found.works and found.detail == "no answer within 0.5 s"


def test_every_engine_has_a_probe():
    assert set(ENGINES) <= set(probe.PROBES)


def test_probes_run_in_processes_of_their_own():
    found = findings(("onnxruntime", "images"))
    assert list(found) == ["onnxruntime", "images"]
    assert all(finding.works for finding in found.values()), found


def test_files_beside_the_user_pass_for_no_module(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('a file of the user')\n")
    done = subprocess.run(probe_command("onnxruntime"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["h264", "mp4v"])
def test_encoders_write_a_clip(name):
    assert "a clip of" in probe.PROBES[name]()


def test_a_wrong_product_is_no_engine():
    with pytest.raises(ArithmeticError, match="expected"):
        probe._check_square(np.zeros((2, 2)))


def test_a_pyav_without_h264_is_not_hidden_by_the_fall_back(monkeypatch):
    monkeypatch.setattr("dovit_deploy.runtime.video_writer.ENCODER", "no such encoder")
    with pytest.raises(EncoderMissing, match=r"H\.264"):
        probe.h264()


def test_a_missing_package_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert probe.main("onnxruntime") == 5
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "pip install" in captured.err
