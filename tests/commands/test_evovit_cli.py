"""Evo-ViT through the command line: a checkpoint of segmentation all the way, and official ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dovit_deploy.checkpoints.own_format import OwnConfig, save_checkpoint
from tests.conftest import Run
from tests.families.evovit import official
from tests.tiny_evovit import tiny_deit_spec, tiny_evo_checkpoint


def write_official(folder: Path, state: dict[str, torch.Tensor], settings: dict[str, object]) -> tuple[str, str]:
    torch.save({"model": state}, folder / "model.pth")
    (folder / "settings.json").write_text(json.dumps({"model_kwargs": settings}))
    return str(folder / "model.pth"), str(folder / "settings.json")


def test_segmentation_from_a_checkpoint_to_masks(dovit: Run, tmp_path: Path) -> None:
    source = tiny_evo_checkpoint(tiny_deit_spec(size=(48, 64), head="linear"), seed=3)
    config = OwnConfig(spec=source.spec, preprocessing=source.preprocessing, classes=source.classes)
    save_checkpoint(tmp_path / "trained", config, source.state)
    exported = dovit("export", str(tmp_path / "trained"), "-o", str(tmp_path / "x.dovit"))
    assert exported.returncode == 0, exported.stderr
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "street.png")
    ran = dovit("run", str(tmp_path / "street.png"), "--bundle", str(tmp_path / "x.dovit"), "-o", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr
    row = json.loads((tmp_path / "out" / "frames.jsonl").read_text())
    assert row["tokens"] == {"total": 13, "kept": [13, 7, 5]}
    assert 0 < row["flops_saved"] < 1
    assert Image.open(tmp_path / "out" / "masks" / "street.png").size == (90, 60)
    refused = dovit("run", str(tmp_path / "street.png"), "--bundle", str(tmp_path / "x.dovit"), "--threshold", "0.5")
    assert refused.returncode == 2
    assert "takes no thresholds" in refused.stderr


def test_official_checkpoints_are_inspected_and_refused_in_one_line(dovit: Run, tmp_path: Path) -> None:
    weights, config = write_official(tmp_path, official.deit_state(), official.DEIT)
    shown = dovit("inspect", weights)
    assert shown.returncode == 0
    size = dovit("export", weights, "--config", config, "--size", "70x64")
    assert size.returncode == 2
    assert "size 70x64: both sides must be multiples of the patch, 16 (64x64 is near)" in size.stderr.replace("\n", " ")
    unknown = dovit("export", weights)
    assert unknown.returncode == 3
    assert ": tradeoff, num_heads; state them in a file given with --config" in unknown.stderr.replace("\n", " ")
    weights, config = write_official(tmp_path, official.plain_state(), official.DEIT)
    plain = dovit("export", weights, "--config", config)
    assert plain.returncode == 6
    assert "is a plain DeiT" in plain.stderr
    assert "Traceback" not in size.stderr + unknown.stderr + plain.stderr
    assert not list(tmp_path.glob("*.dovit*"))
