from __future__ import annotations

import pytest

from dovit_deploy.engines.registry import ENGINES
from dovit_deploy.errors import InputError
from dovit_deploy.measure import examination as module
from dovit_deploy.measure.examination import examination
from dovit_deploy.measure.probing import Finding

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
    assert found.can_run and found.mends == ()
    assert all(check.mend is None for check in (*found.engines, found.images, *found.encoders))


def test_a_missing_engine_package_is_installed(machine):
    found = machine(broken={"onnxruntime"}, missing={"onnxruntime"})
    assert found.can_run, "torch still works"
    assert found.mends == ("pip install 'dovit-deploy[cpu]'",)


def test_without_any_engine_nothing_runs(machine):
    assert not machine(broken=set(ENGINES)).can_run


def test_the_gpu_engine_has_a_line_of_its_own_and_is_no_fault(machine):
    found = machine(broken={"cuda"})
    assert found.can_run and found.mends == ()
    (cuda,) = [check for check in found.engines if check.name == "cuda"]
    assert cuda.mend == "pip uninstall -y onnxruntime && pip install 'dovit-deploy[gpu]'"


@pytest.mark.parametrize(
    ("missing", "reason", "mend"),
    [
        ((), "1.7.1, engines can be built here, not run: no NVIDIA driver here", "nvidia-smi"),
        (("tensorrt_rtx",), "the package 'tensorrt_rtx' is needed", "pip install 'dovit-deploy[tensorrt-rtx]'"),
        (("cuda.bindings.driver",), "the package 'cuda.bindings.driver' is needed", "pip install cuda-bindings"),
    ],
)
def test_what_an_engine_on_a_gpu_lacks(machine, missing, reason, mend):
    found = machine(broken={"tensorrt-rtx"}, missing=missing, reason=reason)
    (check,) = [engine for engine in found.engines if engine.name == "tensorrt-rtx"]
    assert not check.works
    assert check.mend == mend
    assert found.can_run and mend not in found.mends, "nobody needs it to run"


def test_without_pictures_nothing_runs(machine):
    assert not machine(broken={"images"}).can_run


def test_what_is_installed_and_broken_is_installed_anew(machine):
    found = machine(broken={"onnxruntime"})
    assert found.engines[0].mend == "pip install --force-reinstall --no-deps dist-onnxruntime"


def test_the_package_that_the_reason_names_is_mended(machine):
    reason = "the package 'PIL' is needed for reading images and cannot be imported"
    assert machine(broken={"images"}, reason=reason).images.mend == "pip install --force-reinstall --no-deps dist-PIL"


def test_a_missing_encoder_does_not_stop_a_run(machine):
    found = machine(broken={"h264"}, missing={"av"})
    assert found.can_run and found.mends == ("pip install 'dovit-deploy[video]'",)


def test_h264_without_opencv_asks_for_opencv(machine):
    found = machine(broken={"h264", "mp4v", "images"}, missing={"cv2"})
    assert {found.encoders[0].mend, found.encoders[1].mend, found.images.mend} == {"pip install 'dovit-deploy[cpu]'"}


def test_a_conflict_is_mended_first(machine):
    found = machine(broken={"onnxruntime"}, installed=("onnxruntime", "onnxruntime-gpu"))
    assert found.mends[0] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert len(found.mends) == 2


def test_the_default_model(machine, monkeypatch, bundle_copy):
    def none_installed():
        raise InputError("no default model; install one: pip install X")

    monkeypatch.setattr(module, "default_bundle", none_installed)
    found = machine().default_model
    assert (found.path, found.works) == (None, False) and "pip install X" in found.detail
    monkeypatch.setattr(module, "default_bundle", lambda: (bundle_copy, "CC0"))
    found = machine().default_model
    assert (found.path, found.works, found.detail) == (str(bundle_copy), True, "CC0")
    (bundle_copy / "dense.onnx").write_bytes(b"")
    found = machine().default_model
    assert not found.works and "dense.onnx" in found.detail
