"""`doctor`: what is installed, what works, and the line that fixes what does not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dovit_deploy.bundle.installed import ChosenBundle
from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.errors import InputError
from dovit_deploy.measure import doctor as module
from dovit_deploy.measure.doctor import (
    Finding,
    PackageState,
    conflicts,
    examination,
    finding_of,
    findings,
    installed_versions,
    package_states,
    probe_command,
)

NAMES = (*ENGINES, "images", "h264", "mp4v")


@pytest.fixture
def machine(monkeypatch):
    """A machine on which `broken` fails and `missing` is not installed, with the distributions of `installed`."""

    def make(*, broken=(), missing=(), installed=(), reason="it broke"):
        def findings(names):
            assert set(names) == set(NAMES)
            return {name: Finding(name=name, works=name not in broken, detail=reason) for name in names}

        states = module.package_states()
        states = tuple(
            state.model_copy(
                update={"installed": state.module not in missing, "distributions": (f"dist-{state.module}",)}
            )
            for state in states
        )
        monkeypatch.setattr(module, "findings", findings)
        monkeypatch.setattr(module, "package_states", lambda: states)
        monkeypatch.setattr(module, "installed_versions", lambda: dict.fromkeys(installed, "1"))
        return examination()

    return make


def test_a_whole_machine_needs_nothing(machine):
    found = machine()
    assert found.can_run and found.fixes == ()
    assert all(check.fix is None for check in (*found.engines, found.images, *found.encoders))


def test_a_missing_engine_package_is_installed(machine):
    found = machine(broken={"onnxruntime"}, missing={"onnxruntime"})
    assert found.can_run, "torch still works"
    assert found.fixes == ("pip install 'dovit-deploy[cpu]'",)


def test_without_any_engine_nothing_runs(machine):
    assert not machine(broken=set(ENGINES)).can_run


def test_the_gpu_engine_has_a_line_of_its_own_and_is_no_fault(machine):
    found = machine(broken={"cuda"})
    assert found.can_run and found.fixes == ()
    (cuda,) = [check for check in found.engines if check.name == "cuda"]
    assert cuda.fix == "pip uninstall -y onnxruntime && pip install 'dovit-deploy[gpu]'"


@pytest.mark.parametrize(
    ("missing", "reason", "fix"),
    [
        ((), "1.7.1, engines can be built here, not run: no NVIDIA driver here", "nvidia-smi"),
        (("tensorrt_rtx",), "the package 'tensorrt_rtx' is needed", "pip install 'dovit-deploy[tensorrt-rtx]'"),
        (("cuda.bindings.driver",), "the package 'cuda.bindings.driver' is needed", "pip install cuda-bindings"),
    ],
)
def test_what_an_engine_on_a_gpu_lacks(machine, missing, reason, fix):
    found = machine(broken={"tensorrt-rtx"}, missing=missing, reason=reason)
    (check,) = [engine for engine in found.engines if engine.name == "tensorrt-rtx"]
    assert not check.works
    assert check.fix == fix
    assert found.can_run and fix not in found.fixes, "nobody needs it to run"


def test_without_images_nothing_runs(machine):
    assert not machine(broken={"images"}).can_run


def test_what_is_installed_and_broken_is_reinstalled(machine):
    found = machine(broken={"onnxruntime"})
    assert found.engines[0].fix == "pip install --force-reinstall --no-deps dist-onnxruntime"


def test_the_package_that_the_reason_names_is_fixed(machine):
    reason = "the package 'PIL' is needed for reading images and cannot be imported"
    assert machine(broken={"images"}, reason=reason).images.fix == "pip install --force-reinstall --no-deps dist-PIL"


def test_a_missing_encoder_does_not_stop_a_run(machine):
    found = machine(broken={"h264"}, missing={"av"})
    assert found.can_run and found.fixes == ("pip install 'dovit-deploy[video]'",)


def test_h264_without_opencv_asks_for_opencv(machine):
    found = machine(broken={"h264", "mp4v", "images"}, missing={"cv2"})
    assert {found.encoders[0].fix, found.encoders[1].fix, found.images.fix} == {"pip install 'dovit-deploy[cpu]'"}


def test_a_conflict_is_fixed_first(machine):
    found = machine(broken={"onnxruntime"}, installed=("onnxruntime", "onnxruntime-gpu"))
    assert found.fixes[0] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert len(found.fixes) == 2


def test_the_default_model(machine, monkeypatch, bundle_copy):
    def none_installed():
        raise InputError("no default model; install one: pip install X")

    monkeypatch.setattr(module, "default_bundle", none_installed)
    found = machine().default_model
    assert (found.path, found.works) == (None, False) and "pip install X" in found.detail
    monkeypatch.setattr(module, "default_bundle", lambda: ChosenBundle(bundle_copy, "CC0"))
    found = machine().default_model
    assert (found.path, found.works, found.detail) == (str(bundle_copy), True, "CC0")
    (bundle_copy / "dense.onnx").write_bytes(b"")
    found = machine().default_model
    assert not found.works and "dense.onnx" in found.detail


def test_one_of_each_is_fine():
    assert conflicts({"onnxruntime": "1.20", "opencv-python-headless": "4.9", "numpy": "2.0"}) == ()


def test_both_onnxruntimes():
    (conflict,) = conflicts({"onnxruntime": "1.20", "onnxruntime-gpu": "1.21", "numpy": "2.0"})
    assert conflict.module == "onnxruntime"
    assert conflict.distributions == ("onnxruntime-gpu 1.21", "onnxruntime 1.20")
    assert conflict.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


@pytest.mark.parametrize(
    ("present", "kept"),
    [
        (("opencv-python", "opencv-python-headless"), "opencv-python"),
        (("opencv-python-headless", "opencv-contrib-python-headless"), "opencv-contrib-python-headless"),
        (("opencv-python", "opencv-contrib-python", "opencv-python-headless"), "opencv-contrib-python"),
    ],
)
def test_doubled_opencv_keeps_the_most_capable(present, kept):
    (conflict,) = conflicts(dict.fromkeys(present, "4.9"))
    removed, installed = conflict.fix.split(" && ")
    assert set(removed.removeprefix("pip uninstall -y ").split()) == set(present)
    assert installed == f"pip install {kept}"


def test_both_kinds_of_conflict_at_once():
    names = ("onnxruntime", "onnxruntime-gpu", "opencv-python", "opencv-python-headless")
    assert [conflict.module for conflict in conflicts(dict.fromkeys(names, "1"))] == ["onnxruntime", "cv2"]


def test_what_is_installed_here():
    versions = installed_versions()
    assert {"numpy", "pydantic", "typing-extensions"} <= versions.keys()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in versions)
    assert conflicts(versions) == ()


def test_states_of_a_present_and_an_absent_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else object())
    states = {state.module: state for state in package_states(("onnx", "av"))}
    assert states["onnx"].installed and states["onnx"].version == installed_versions()["onnx"]
    assert not states["av"].installed and states["av"].version is None
    assert states["av"].install == states["av"].fix == "pip install 'dovit-deploy[video]'"


def state(module, *distributions):
    return PackageState(
        module=module, purpose="", installed=True, distributions=distributions, version="1", install="pip install x"
    )


def test_what_is_there_and_broken_is_reinstalled():
    assert state("onnxruntime", "onnxruntime").fix == "pip install --force-reinstall --no-deps onnxruntime"
    assert state("cv2", "opencv-python").fix == "pip uninstall -y opencv-python && pip install opencv-python-headless"
    assert (
        state("cv2", "opencv-python-headless").fix == "pip install --force-reinstall --no-deps opencv-python-headless"
    )


def tried(program, *, limit=30.0):
    return finding_of("x", [sys.executable, "-c", program], limit)


def test_what_works_reports_its_last_line():
    found = tried("print('noise'); print('1.2.3')")
    assert found.works and found.detail == "1.2.3"


def test_a_crash_is_reported():
    found = tried("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert not found.works and found.detail == "crashed with SIGSEGV"


def test_an_exception_is_reported_by_its_last_line():
    found = tried("raise ImportError('libGL.so.1: cannot open shared object file')")
    assert not found.works and "libGL.so.1" in found.detail


def test_a_silent_failure_reports_its_code():
    assert tried("import sys; sys.exit(3)").detail == "left with code 3"


def test_what_hangs_is_stopped():
    found = tried("import time; time.sleep(60)", limit=0.5)
    assert not found.works and found.detail == "no answer within 0.5 s"


def test_probes_run_in_processes_of_their_own():
    found = findings(("onnxruntime", "images"))
    assert list(found) == ["onnxruntime", "images"]
    assert all(finding.works for finding in found.values()), found


def test_files_beside_the_user_pass_for_no_module(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('a file of the user')\n")
    done = subprocess.run(probe_command("onnxruntime"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
