"""STViT-R by the real command line: official checkpoint or trained segmenter in, bundle, images out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from dovit_deploy.families.stvit.keys import SWIN_MAP
from dovit_deploy.runtime.session import Session
from tests.conftest import Run
from tests.families.official_state import random_state
from tests.tiny import tiny_pixels
from tests.tiny_stvit import tiny_backbone, tiny_segmenter, tiny_swin, training_state


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of 40x56 pixels as training writes it."""
    spec = tiny_segmenter((40, 56), head="pup")
    config = OwnConfig(
        spec=spec,
        preprocessing=Preprocessing(mean=(127.5,) * 3, std=(50.0,) * 3, assumed=False, stride=None),
        classes=tuple(ClassEntry(name=f"class {number}", color=(40 * number, 0, 90)) for number in range(5)),
    )
    folder = tmp_path_factory.mktemp("trained") / "segmenter"
    save_checkpoint(folder, config, training_state(spec))
    return folder


def test_a_segmenter_is_exported_and_run(segmenter: Path, dovit: Run, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (61, 83, 3), dtype=np.uint8)).save(image)
    made = dovit("export", segmenter, "-o", "made.dovit", "--size", "36x50", timeout=600)
    assert made.returncode == 0, made.stderr
    assert "largest difference" in made.stdout
    ran = dovit("run", image, "--bundle", "made.dovit", "-o", "out", "--save", "overlay,masks,tokens")
    assert ran.returncode == 0, ran.stderr
    row = json.loads((tmp_path / "out" / "frames.jsonl").read_text())
    # 36 x 50 pixels make grids of 9x13, 5x7 and 3x4; windows of 3 cover the last twice: 18 semantic tokens.
    assert row["tokens"] == {"total": 9 * 13, "kept": [9 * 13, 5 * 7, 18]}
    assert row["flops_saved"] == pytest.approx(1 - row["gmacs"]["actual"] / row["gmacs"]["dense"])
    assert Image.open(tmp_path / "out" / "masks" / "image.png").size == (83, 61)
    refused = dovit("run", image, "--bundle", "made.dovit", "-o", "dense", "--dense")
    assert refused.returncode == 2 and "no dense network" in refused.stderr
    seen = dovit("inspect", "made.dovit")
    assert seen.returncode == 0 and "18 semantic tokens for 12 in stage 2" in seen.stdout


@pytest.mark.exhaustive
def test_a_backbone_is_exported_and_gives_features(dovit: Run, tmp_path: Path) -> None:
    spec = tiny_backbone((40, 56))
    state = random_state(SWIN_MAP, spec)
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "det.pth")
    config = {"window_size": 3, "k_window_size_1": 6, "k_window_size_2": 9, "restore_k_window_size": 7}
    (tmp_path / "det.json").write_text(json.dumps({"kwargs": config}))
    made = dovit("export", "det.pth", "--config", "det.json", "--size", "40x56", timeout=600)
    assert made.returncode == 0, made.stderr
    from dovit_deploy.bundle.bundle import Bundle

    with Session(Bundle.open(tmp_path / "det.dovit"), threads=1) as session:
        answer, report = session.run(tiny_pixels((40, 56)).numpy())
    assert isinstance(answer, dict)
    assert {name: value.shape for name, value in answer.items()} == spec.outputs
    assert not isinstance(report, list) and report.kept == spec.counts


def test_a_plain_swin_where_stvit_is_expected(dovit: Run, tmp_path: Path) -> None:
    save_file(random_state(SWIN_MAP, tiny_swin()), tmp_path / "swin.safetensors")
    (tmp_path / "stvit.json").write_text(json.dumps({"kwargs": {"use_global": False, "use_conv_pos": False}}))
    refused = dovit("export", "swin.safetensors", "--config", "stvit.json")
    assert refused.returncode == 6
    assert "plain Swin and no STViT-R" in refused.stderr and "leave --config out" in refused.stderr
    assert not (tmp_path / "swin.dovit").exists()
