from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from dovit_deploy.sources.video_writer import open_video_writer
from tests.families.vit.official import DOVIT, config_text, dovit_state, save_pth


@pytest.fixture
def without_torch(without):
    return without("torch")


def test_a_bundle_without_torch(dovit, tiny_bundle_path, tmp_path, without_torch):
    done = dovit("inspect", tiny_bundle_path, "--json", "report.json", **without_torch)
    assert done.returncode == 0, done.stderr
    assert "gate 0" in done.stdout and "nothing stopped" in done.stdout and "weights.safetensors" in done.stdout
    assert f"next: dovit run YOUR_IMAGE_OR_VIDEO --bundle {tiny_bundle_path}" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kind"] == "bundle" and report["parity"]["passed"]
    assert report["manifest"]["spec"]["size"] == [56, 72]
    files = {path.name for path in tiny_bundle_path.iterdir()}
    assert report["manifest"]["files"].keys() == files - {"manifest.json"}


@pytest.mark.parametrize("file", ["stage1.onnx", "weights.safetensors"])
def test_a_file_of_a_bundle_leads_back_to_it(dovit, tiny_bundle_path, without_torch, file):
    done = dovit("inspect", tiny_bundle_path / file, **without_torch)
    assert done.returncode == 0, done.stderr
    assert f"next: dovit inspect {tiny_bundle_path}\n" in done.stderr


def test_a_graph_without_the_package_onnx(dovit, tiny_bundle_path, tmp_path, without):
    done = dovit("inspect", tiny_bundle_path / "stage0.onnx", "--json", "report.json", **without("onnx", "torch"))
    assert done.returncode == 0, done.stderr
    assert "pixels float32 (1, 3, 56, 72)" in done.stdout and "pip install onnx" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [port["name"] for port in report["inputs"]] == ["pixels", "thresholds", "floor"]
    assert report["operators"] is None


def test_a_graph_that_nothing_here_reads(dovit, tiny_bundle_path, without):
    done = dovit("inspect", tiny_bundle_path / "stage0.onnx", **without("onnx", "onnxruntime"))
    assert done.returncode == 5 and "pip install onnx" in done.stderr and "Traceback" not in done.stderr


def test_an_image_and_a_folder_of_images(dovit, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    done = dovit("inspect", folder / "0.png")
    assert done.returncode == 0 and "30x20 pixels (width x height)" in done.stdout
    done = dovit("inspect", folder, "--json", "report.json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kind"], report["frames"], report["height"], report["width"]) == ("images", 3, 20, 30)


def test_a_video(dovit, tmp_path):
    path = tmp_path / "a clip.mp4"
    with open_video_writer(path, size=(48, 64), rate=Fraction(30000, 1001)) as writer:
        for number in range(12):
            writer.write(np.zeros((48, 64, 3), dtype=np.uint8), Fraction(1001 * number, 30000))
    done = dovit("inspect", path, "--json", "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kind"], report["frames"], report["rate"]) == ("video", 12, "30000/1001")
    assert report["seconds"] == pytest.approx(0.4004) and report["audio"] is False
    # The line can be pasted into a shell as it is.
    assert f"next: dovit run '{path}'" in done.stderr


def test_a_checkpoint_with_its_configuration(dovit, tmp_path):
    path = save_pth(tmp_path / "model.pth", dovit_state(), config=config_text(DOVIT))
    done = dovit("inspect", path, "--json", "report.json")
    assert done.returncode == 0, done.stderr
    assert "gate 1" in done.stdout and "threshold 0.9" in done.stdout and "nothing stopped" in done.stdout
    assert f"next: dovit export {path}\n" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kind"] == "checkpoint" and report["problem"] is None
    assert report["network"]["spec"]["family"] == "dovit" and report["network"]["spec"]["size"] == [32, 48]


def test_a_checkpoint_that_lacks_its_configuration_is_described(dovit, tmp_path):
    path = save_pth(tmp_path / "model.pth", dovit_state())
    done = dovit("inspect", path, "--json", "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["network"] is None and report["problem"] in done.stdout
    assert report["tensors"] == len(dovit_state())
    assert report["parameters"] == sum(tensor.numel() for tensor in dovit_state().values())
    assert f"next: dovit export {path} --config FILE" in done.stderr


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_execute_code(dovit, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Payload()}, path)
    done = dovit("inspect", path)
    assert done.returncode == 6 and "executed" not in done.stdout


def test_a_checkpoint_without_torch_names_the_package(dovit, tmp_path, without_torch):
    path = tmp_path / "model.pth"
    path.write_bytes(b"x")
    done = dovit("inspect", path, **without_torch)
    assert done.returncode == 5 and "pip install 'dovit-deploy[export]'" in done.stderr


def test_a_bundle_with_a_flipped_byte(dovit, bundle_copy):
    target = bundle_copy / "weights.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    done = dovit("inspect", bundle_copy)
    assert done.returncode == 6 and "weights.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_a_file_called_dovit_is_no_bundle(dovit, tmp_path):
    (tmp_path / "model.dovit").write_text("not a folder")
    assert dovit("inspect", tmp_path / "model.dovit").returncode == 6


@pytest.mark.parametrize("name", ["text.mp4", "text.onnx", "text.safetensors", "text.png", "text", "text.pth"])
def test_a_text_under_any_name(dovit, tmp_path, name):
    path = tmp_path / name
    path.write_text("this is a text\n" * 4)
    done = dovit("inspect", path)
    assert done.returncode == 3, done.stderr
    assert name in done.stderr and done.stderr.count("\n") <= 2


def test_nothing_there(dovit, tmp_path):
    (tmp_path / "empty").mkdir()
    assert dovit("inspect", "nowhere.onnx").returncode == 3
    assert dovit("inspect", "empty").returncode == 3


def test_weights_of_no_network_lead_to_no_export(dovit, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    done = dovit("inspect", path)
    assert done.returncode == 0 and "1 (1 F32)" in done.stdout and "of no supported family" in done.stdout
    assert "next: dovit doctor\n" in done.stderr
