"""timm's vision transformers against timm: every arrangement of extra tokens, norms, scales and MLPs that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dovit_deploy.checkpoints.backbone import backbone_from_path
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import CheckpointMismatch, ConfigError, NetworkUnknown
from dovit_deploy.families.evovit.spec import EvoDeitSpec
from tests.families.vit.test_dinov2 import SIZES, head_state, patches_of
from tests.oracles import vits
from tests.oracles.packages import timm_vision_transformer
from tests.tiny import tiny_pixels


def swiglu() -> Any:
    return timm_vision_transformer().SwiGLUPacked


ARRANGEMENTS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 1),
    "scaled": ({"init_values": 0.1}, 1),
    "registers with positions": ({"reg_tokens": 4}, 5),
    "registers without": ({"reg_tokens": 4, "no_embed_class": True}, 5),
    "pooled, normed before": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, 0),
    "pooled, normed after": ({"class_token": False, "global_pool": "avg", "reg_tokens": 1, "num_classes": 7}, 1),
    "class token in the pooling": ({"global_pool": "avg", "pool_include_prefix": True}, 1),
    "without last norm": ({"final_norm": False, "no_embed_class": True}, 1),
    "no bias": ({"qkv_bias": False}, 1),
    "gated": ({"mlp_layer": swiglu, "act_layer": "silu", "mlp_ratio": 5.0}, 1),
    "classifier beside it": ({"num_classes": 7}, 1),
}
"""Options of the constructor, and extra tokens."""


def saved(tmp_path: Path, **options: Any) -> tuple[Any, Path, Path]:
    """A random model, the file of its weights, and a configuration with what the keys do not show."""
    model = vits.timm_vit(**{name: value() if callable(value) else value for name, value in options.items()})
    path, config = tmp_path / "vit.safetensors", tmp_path / "vit.json"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    stated = {name: options[name] for name in ("qkv_bias",) if name in options}
    config.write_text(json.dumps({"num_heads": vits.HEADS, **stated}))
    return model, path, config


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_features_are_those_of_timm(tmp_path: Path, name: str) -> None:
    options, extra = ARRANGEMENTS[name]
    model, path, config = saved(tmp_path, **options)
    backbone = backbone_from_path(path, config=config)
    assert backbone.values["extra_tokens"] == extra
    for size in SIZES:
        pixels = tiny_pixels(size, 1)
        torch.testing.assert_close(patches_of(backbone, pixels), vits.timm_patches(model, pixels), atol=1e-4, rtol=0)


def test_a_distillation_token_is_an_extra_token(tmp_path: Path) -> None:
    model, path = vits.timm_distilled(), tmp_path / "deit.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    (tmp_path / "deit.json").write_text(json.dumps({"num_heads": vits.HEADS}))
    backbone = backbone_from_path(path, config=tmp_path / "deit.json")
    assert backbone.values["extra_tokens"] == 2
    pixels = tiny_pixels((84, 42), 1)
    torch.testing.assert_close(patches_of(backbone, pixels), vits.timm_patches(model, pixels), atol=1e-4, rtol=0)


def test_sizes_that_are_no_whole_patches_are_padded_as_timm_does(tmp_path: Path) -> None:
    model, path, config = saved(tmp_path, dynamic_img_pad=True)
    pixels = tiny_pixels((61, 90), 4)
    backbone = backbone_from_path(path, config=config)
    torch.testing.assert_close(patches_of(backbone, pixels), vits.timm_patches(model, pixels), atol=1e-4, rtol=0)


def test_a_folder_of_timm_brings_its_normalisation_and_licence(tmp_path: Path) -> None:
    _, path, _ = saved(tmp_path, num_classes=7)
    folder = tmp_path / "hub"
    folder.mkdir()
    path.rename(folder / "model.safetensors")
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5], "license": "cc-by-nc-4.0"}
    text = {"architecture": "vit_small_patch14_224", "model_args": {"num_heads": 3}, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(text))
    save_file(head_state(), tmp_path / "head.safetensors")
    checkpoint = checkpoint_from_path(folder, head=tmp_path / "head.safetensors")
    assert checkpoint.preprocessing.mean == (127.5, 127.5, 127.5)
    assert checkpoint.preprocessing.std == (127.5, 63.75, 127.5)
    assert not checkpoint.preprocessing.assumed
    assert checkpoint.license == "model card: cc-by-nc-4.0"
    assert any("left out beside the backbone: head." in remark for remark in checkpoint.remarks)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-licence\nlicense_link: LICENCE\n---\n# a\n"
    )
    assert (
        checkpoint_from_path(folder, head=tmp_path / "head.safetensors").license == "model card: some-licence (LICENCE)"
    )


def test_a_classifier_stays_one_without_a_head_of_its_own(tmp_path: Path) -> None:
    _, path, config = saved(tmp_path, num_classes=7)
    spec = checkpoint_from_path(path, config=config).spec
    assert isinstance(spec, EvoDeitSpec)
    assert spec.classes == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pre_norm": True}, r"norm_pre, as CLIP's"),
        ({"qk_norm": True}, r"qk_norm"),
        ({"scale_mlp_norm": True}, r"scale_mlp_norm"),
        ({"norm_layer": "rmsnorm"}, r"RMSNorm"),
    ],
)
def test_other_parts_are_refused_by_name(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    _, path, config = saved(tmp_path, **options)
    with pytest.raises(NetworkUnknown, match=words):
        backbone_from_path(path, config=config)


def test_what_no_key_shows_is_named(tmp_path: Path) -> None:
    _, path, config = saved(tmp_path, class_token=False, global_pool="map")
    with pytest.raises(ConfigError, match=r"cannot be determined.*act_layer"):
        backbone_from_path(path, config=config)
    config.write_text(json.dumps({"num_heads": 3, "act_layer": "gelu"}))
    assert backbone_from_path(path, config=config).values["extra_tokens"] == 0
    config.write_text(json.dumps({"act_layer": "gelu"}))
    with pytest.raises(ConfigError, match=r"cannot be determined.*num_heads"):
        backbone_from_path(path, config=config)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_dinov2_without_its_mask_token_keeps_its_licence_and_says_what_is_assumed(
    tmp_path: Path, registers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # timm's file and one of DINOv2's own code without the token have the same names.
    options = {"embed_dim": 384, "depth": 1, "num_heads": 6, "init_values": 0.1, "reg_tokens": registers}
    _, path, _ = saved(tmp_path, **options)
    found = backbone_from_path(path)
    assert found.license == "backbone: DINOv2 (Meta), Apache-2.0"
    assert found.values["position_mode"] == "antialias"
    # With registers both resize alike.
    assert ("resizes by scale" in found.assumed) == (registers == 0)
    assert not backbone_from_path(path, positions="scale").assumed
    save_file({"weight": torch.zeros(2, 384)}, tmp_path / "head.safetensors")
    for words, said in ((), registers == 0), (("--positions", "scale"), False):
        command = ["export", "--backbone", path, "--head", tmp_path / "head.safetensors", "--size", "8x8", *words]
        assert _run(_application(), list(map(str, command))) == 2
        assert ("resizes by scale (--positions)" in capsys.readouterr().err.replace("\n", " ")) == said
    (tmp_path / "hub").mkdir()
    path.rename(tmp_path / "hub" / "model.safetensors")
    about = {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(about))
    assert not backbone_from_path(tmp_path / "hub").assumed


def test_other_vits_of_timm_have_no_licence_and_nothing_is_assumed(tmp_path: Path) -> None:
    _, path, _ = saved(tmp_path, embed_dim=384, depth=1, num_heads=6)
    found = backbone_from_path(path)
    assert (found.license, found.assumed) == ("", "")


def test_a_backbone_alone_says_how_it_gets_a_head(tmp_path: Path) -> None:
    _, path, config = saved(tmp_path, init_values=0.1)
    with pytest.raises(CheckpointMismatch, match=r"timm ViT, width 48, 3 layers(.|\n)*--head FILE"):
        checkpoint_from_path(path, config=config)
