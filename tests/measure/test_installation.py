from __future__ import annotations

import re

import pytest

from dovit_deploy.measure.installation import PackageState, conflicts, installed_versions, package_states


def test_one_of_each_is_fine():
    assert conflicts({"onnxruntime": "1.20", "opencv-python-headless": "4.9", "numpy": "2.0"}) == ()


def test_both_onnxruntimes():
    (conflict,) = conflicts({"onnxruntime": "1.20", "onnxruntime-gpu": "1.21", "numpy": "2.0"})
    assert conflict.module == "onnxruntime"
    assert conflict.distributions == ("onnxruntime-gpu 1.21", "onnxruntime 1.20")
    assert conflict.mend == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


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
    removed, installed = conflict.mend.split(" && ")
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
    assert states["av"].install == states["av"].mend == "pip install 'dovit-deploy[video]'"


def state(module, *distributions):
    return PackageState(
        module=module, purpose="", installed=True, distributions=distributions, version="1", install="pip install x"
    )


def test_what_is_there_and_broken_is_installed_anew():
    assert state("onnxruntime", "onnxruntime").mend == "pip install --force-reinstall --no-deps onnxruntime"
    assert state("cv2", "opencv-python").mend == "pip uninstall -y opencv-python && pip install opencv-python-headless"
    assert (
        state("cv2", "opencv-python-headless").mend == "pip install --force-reinstall --no-deps opencv-python-headless"
    )
