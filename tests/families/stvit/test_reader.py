"""Swin-like checkpoints: which network they are, strictly, and what is said about those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dovit_deploy.checkpoints.checkpoint import Checkpoint, checkpoint_from_path
from dovit_deploy.errors import CheckpointMismatch, ConfigError, UsageError
from dovit_deploy.families.registry import model_from_spec, state_at_size
from dovit_deploy.families.stvit.keys import STVIT_DEIT_MAP, SWIN_MAP
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from dovit_deploy.families.stvit.windows import region_table, relative_table
from tests.families.official_state import random_state
from tests.tiny_stvit import tiny_backbone, tiny_classifier, tiny_deit, tiny_swin

State = dict[str, Tensor]


def with_buffers(state: State, *, window: int, masks: dict[str, int]) -> State:
    """`state` with the buffers that Swin stores; `masks`: block -> side of its grid."""
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        side = (int(len(state[name]) ** 0.5) + 1) // 2
        state[name.replace("bias_table", "index")] = torch.from_numpy(relative_table(side))
    for block, side in masks.items():
        regions = torch.from_numpy(region_table((side, side), window, shift=window // 2))
        state[f"{block}.attn_mask"] = (regions[:, None] != regions[:, :, None]).float() * -100
    return state


def plain_state() -> State:
    masks = {"layers.0.blocks.1": 16, "layers.2.blocks.1": 4}
    return with_buffers(random_state(SWIN_MAP, tiny_swin()), window=2, masks=masks)


def classifier_state(*, options: bool = False) -> State:
    spec = tiny_classifier(options=options)
    return with_buffers(random_state(SWIN_MAP, spec), window=10, masks={"layers.0.blocks.1": 40})


def read(folder: Path, state: State, config: dict[str, Any] | None = None, *, model_key: bool = False) -> Checkpoint:
    path = folder / ("weights.pth" if model_key else "weights.safetensors")
    if model_key:
        torch.save({"model": state, "epoch": 3}, path)
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    settings = None
    if config is not None:
        settings = folder / "settings.json"
        settings.write_text(json.dumps(config))
    return checkpoint_from_path(path, config=settings)


def test_plain_swin_has_the_published_names(tmp_path: Path) -> None:
    """The names of microsoft/Swin-Transformer, written out for the parts that STViT-R does not share."""
    names = plain_state().keys()
    for name in ("patch_embed.proj.weight", "patch_embed.norm.bias", "layers.2.blocks.1.attn.qkv.weight"):
        assert name in names
    checkpoint = read(tmp_path, plain_state(), model_key=True)
    assert checkpoint.spec == tiny_swin()
    model_from_spec(checkpoint.spec, checkpoint.state)


@pytest.mark.parametrize("options", [False, True])
def test_the_classifier_is_read_from_its_keys(tmp_path: Path, options: bool) -> None:
    config = {"kwargs": {"shortcut": options, "drop_path_rate": 0.3, "embed_dim": 4}}
    checkpoint = read(tmp_path, classifier_state(options=options), config)
    assert checkpoint.spec == tiny_classifier(options=options)
    model_from_spec(checkpoint.spec, checkpoint.state)


def backbone_state(prefix: str = "") -> State:
    state = with_buffers(random_state(SWIN_MAP, tiny_backbone()), window=3, masks={})
    return {prefix + name: value for name, value in state.items()}


BACKBONE = {"window_size": 3, "k_window_size_1": 6, "k_window_size_2": 9, "restore_k_window_size": 7}


def test_the_backbone_alone_and_inside_a_detector(tmp_path: Path) -> None:
    wanted = {**tiny_backbone().model_dump(), "size": (224, 224)}
    assert read(tmp_path, backbone_state(), BACKBONE).spec == StvitBackboneSpec.model_validate(wanted)
    detector = {**backbone_state("backbone."), "rpn_head.rpn_conv.weight": torch.zeros(2)}
    model = {"model": {"type": "MaskRCNN", "backbone": {"type": "SwinTransformer", **BACKBONE}, "neck": {}}}
    checkpoint = read(tmp_path, detector, model)
    assert checkpoint.spec == StvitBackboneSpec.model_validate(wanted)
    assert checkpoint.classes == ()
    unmasked = read(tmp_path, backbone_state(), {**BACKBONE, "pad_mask": False, "pretrain_img_size": 64})
    assert isinstance(unmasked.spec, StvitBackboneSpec)
    assert (unmasked.spec.padding_mask, unmasked.spec.size) == ("none", (64, 64))


@pytest.mark.parametrize(
    "config",
    [{"family": "stvit_r_swin_cls"}, {"kwargs": {"use_global": False}}, {"model": {"backbone": {"pad_mask": True}}}],
)
def test_a_plain_swin_is_no_stvit(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"plain Swin and no STViT-R.*leave --config out"):
        read(tmp_path, plain_state(), config)


def test_missing_and_unexpected_entries_are_named(tmp_path: Path) -> None:
    state = classifier_state()
    del state["layers.2.blocks.4.attn.kv.weight"]
    state["layers.2.blocks.1.conv.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointMismatch, match=r"missing: layers\.2\.blocks\.4\.attn\.kv\.weight.*blocks\.1\.conv"):
        read(tmp_path, state)


def test_a_block_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    """The mismatch between released code and weights: an ordinary block where a semantic one belongs."""
    state, plain = classifier_state(), "layers.2.blocks.4.attn.qkv.weight"
    for name in ("q.weight", "q.bias", "kv.weight", "kv.bias"):
        del state[f"layers.2.blocks.4.attn.{name}"]
    state[plain] = torch.zeros(48, 16)
    with pytest.raises(CheckpointMismatch, match=r"missing:.*unexpected: layers\.2\.blocks\.4\.attn\.qkv\.weight"):
        read(tmp_path, state)


@pytest.mark.parametrize("change", ["positions", "mask", "shape"])
def test_tables_of_another_network_are_refused(tmp_path: Path, change: str) -> None:
    state = classifier_state()
    if change == "mask":
        state["layers.0.blocks.1.attn_mask"][0, 0, 1] = -100
    elif change == "shape":
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9)
    else:
        name = "layers.0.blocks.0.attn.relative_position_index"
        state[name] = state[name].T.contiguous()
    with pytest.raises(CheckpointMismatch, match="tables that are not Swin's"):
        read(tmp_path, state)


def test_no_tables_at_all_is_fine(tmp_path: Path) -> None:
    state = {
        name: value for name, value in classifier_state().items() if "attn_mask" not in name and "index" not in name
    }
    assert read(tmp_path, state).spec == tiny_classifier()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"img_size": 192}, "img_size.*160x160"),
        ({"kwargs": {"use_global": True}}, "use_global"),
        ({"kwargs": {"depths": [2, 1, 12, 2]}}, "depths"),
        ({"kwargs": {"ape": True}}, "ape"),
        ({"kwargs": {"sample_window_size": 2}}, "sample_window_size"),
        ({"kwargs": {"sampel": 2}}, "sampel"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, classifier_state(), config)


def test_a_swin_without_a_head_is_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in plain_state().items() if not name.startswith("head")}
    with pytest.raises(CheckpointMismatch, match="without a classifier"):
        read(tmp_path, state)


def test_deit_needs_what_no_key_shows(tmp_path: Path) -> None:
    state = random_state(STVIT_DEIT_MAP, tiny_deit((48, 48)))
    with pytest.raises(ConfigError, match="heads, stgm_start"):
        read(tmp_path, state)
    assert read(tmp_path, state, {"heads": 2, "stgm_start": 2}).spec == tiny_deit((48, 48))


def test_sizes_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="windows of 7 classifies 224x224 only"):
        StvitSwinSpec.model_validate({**tiny_classifier().model_dump(), "window": 7})
    with pytest.raises(ValueError, match="multiples of 64"):
        tiny_swin((64, 96))
    # The last grid was one window of 2x2; at twice the side it is cut into windows, with the same weights.
    checkpoint = read(tmp_path, plain_state())
    assert state_at_size(checkpoint.state, checkpoint.spec, (128, 128)) == checkpoint.state
    # At half the side it is a window of one token, for which there are no biases.
    with pytest.raises(UsageError, match=r"32x32: stages\.3.*give 64x64"):
        state_at_size(checkpoint.state, checkpoint.spec, (32, 32))
    assert isinstance(checkpoint.spec, SwinSpec)
