"""A backbone and a head from two files, exported: the answers of transformers and timm in every form of the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.engines.onnxruntime import OnnxRuntimeBackend
from dovit_deploy.runtime.session import Session
from tests.bundles import export
from tests.datasets.labelled_folder import noise
from tests.export.test_fixtures_onnx import run_merged
from tests.oracles import vits
from tests.tiny import tiny_pixels

SIZE = (61, 90)
"""No whole patches of 14: five rows and seven columns of them."""
CLASSES = 5


def assert_answers(bundle: Bundle, pixels: Tensor, wanted: Tensor) -> None:
    """(K, h, w) of the reference, from PyTorch, from both forms of the stages, and from the merged graph."""
    sessions = [
        Session(bundle, engine="torch"),
        Session(bundle, backend=OnnxRuntimeBackend(threads=1, fast=False)),
        Session(bundle, threads=1),
    ]
    reports = []
    for session in sessions:
        with session:
            logits, report = session.run(pixels.numpy())
            np.testing.assert_allclose(logits[0], wanted.numpy(), atol=1e-4, rtol=0)
            reports.append(report)
    np.testing.assert_allclose(run_merged(bundle, pixels.numpy(), reports[0].kept)[0], wanted, atol=1e-4, rtol=0)


def test_dinov2_with_its_own_kind_of_head_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vits.dinov2(registers=3, gated=True)
    model.save_pretrained(tmp_path / "dinov2")
    draw = torch.Generator().manual_seed(9)
    norm = {name: torch.randn(vits.WIDTH, generator=draw) for name in ("weight", "bias", "running_mean")}
    norm["running_var"] = torch.rand(vits.WIDTH, generator=draw) + 0.1
    weight, bias = torch.randn(CLASSES, vits.WIDTH, generator=draw) / 7, torch.randn(CLASSES, generator=draw)
    head = {f"decode_head.bn.{name}": tensor for name, tensor in norm.items()}
    head |= {"decode_head.conv_seg.weight": weight[:, :, None, None], "decode_head.conv_seg.bias": bias}
    torch.save({"state_dict": head, "meta": {"CLASSES": tuple("abcde")}}, tmp_path / "head.pth")
    image, made = tmp_path / "image.png", tmp_path / "made.dovit"
    Image.fromarray(noise(SIZE, classes=CLASSES, seed=0)[0]).save(image)
    words = [
        "export",
        "--backbone",
        tmp_path / "dinov2",
        "--head",
        tmp_path / "head.pth",
        "--size",
        "61x90",
        "-o",
        made,
    ]
    assert _run(_application(), [str(word) for word in (*words, "--parity-images", image)]) == 0
    assert "size 61x90: padded on all sides to 70x98, whole patches of 14" in capsys.readouterr().err
    bundle = Bundle.open(made)
    assert [entry.name for entry in bundle.manifest.classes] == list("abcde")
    assert bundle.manifest.provenance.license == "backbone: DINOv2 (Meta), Apache-2.0"
    assert bundle.manifest.provenance.source == "dinov2 with head.pth"
    pixels = tiny_pixels(SIZE, 3)
    # Of the 9 missing rows 5 come behind, of the 8 columns 4.
    patches = vits.dinov2_patches(model, functional.pad(pixels, (4, 4, 4, 5)))
    normed = functional.batch_norm(patches, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"])
    assert_answers(bundle, pixels, (normed @ weight.T + bias).T.reshape(CLASSES, 5, 7))


def test_timm_with_a_linear_head(tmp_path: Path) -> None:
    model = vits.timm_vit(class_token=False, reg_tokens=1, global_pool="avg", init_values=0.2, dynamic_img_pad=True)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "vit.json").write_text('{"num_heads": 3}')
    draw = torch.Generator().manual_seed(8)
    weight, bias = torch.randn(CLASSES, vits.WIDTH, generator=draw) / 7, torch.randn(CLASSES, generator=draw)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    checkpoint = checkpoint_from_path(
        tmp_path / "vit.safetensors", config=tmp_path / "vit.json", head=tmp_path / "head.safetensors"
    )
    bundle, _ = export(checkpoint, tmp_path / "made.dovit", size=SIZE)
    pixels = tiny_pixels(SIZE, 3)
    logits = vits.timm_patches(model, pixels) @ weight.T + bias
    assert_answers(bundle, pixels, logits.T.reshape(CLASSES, 5, 7))
