"""Folders that are no checkpoints of ours are called what they are, by export and by inspect alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.errors import InputError
from dovit_deploy.measure.inspect import contents_of

TIMM = {"architecture": "convnext_tiny", "num_classes": 20, "pretrained_cfg": {"tag": "fb_in1k"}}
TIMM_VIT = {"architecture": "beitv2_base_patch16_224", "pretrained_cfg": {}}
FOLDERS: dict[str, tuple[tuple[str, ...], object, str]] = {
    "timm": (("model.safetensors",), TIMM, r"a timm model \(convnext_tiny\).*\n?.*Supported: .*DeiT"),
    "timm ViT": (("model.safetensors",), TIMM_VIT, r"a timm ViT \(beitv2_base_patch16_224\).*\n?.*Supported: .*DeiT"),
    "transformers": (("model.safetensors",), {"architectures": ["ViTModel"]}, r"a transformers model \(ViTModel\)"),
    "no weights": ((), {"model_type": "segformer"}, r"a transformers model \(segformer\)"),
    "shards": (("model-00001-of-00002.safetensors", "other.safetensors.index.json"), None, "checkpoint in parts"),
    "pickled shards": (("other.bin.index.json",), None, r"in parts(.|\n)*torch\.save"),
    "deepspeed": (("latest", "zero_to_fp32.py"), None, r"DeepSpeed(.|\n)*zero_to_fp32\.py"),
    "zero": (("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",), None, "DeepSpeed"),
    "distributed": ((".metadata", "__0_0.distcp"), None, r"distributed(.|\n)*dcp_to_torch"),
    "accelerate": (("model.safetensors", "optimizer.bin"), None, r"in it are model\.safetensors(.|\n)*Give one"),
    "run": (("a.pth", "b.pth", "c.pth", "d.pth", "e.pth"), None, r"a\.pth, b\.pth, c\.pth, d\.pth and 1 more"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    names, config, words = FOLDERS[kind]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    for read in (checkpoint_from_path, contents_of):
        with pytest.raises(InputError, match=words):
            read(tmp_path)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither config\.json"):
        checkpoint_from_path(tmp_path)


def test_images_beside_weights_are_still_images(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert contents_of(tmp_path).kind == "images"
