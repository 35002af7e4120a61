"""Tiny checkpoints as the official projects write them: configuration, random state dict, meta."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyMap, Ours, batched, extra_token, some_rows
from dovit_deploy.families.parts import FcnHead, GateSpec, LinearHead, MaskHead, QueryHead, SetrHead
from dovit_deploy.families.rotary import PERIODS, periods_from_base
from dovit_deploy.families.vit import dinov2, dinov2_transformers, dinov3, dinov3_transformers, eomt, timm_vit
from dovit_deploy.families.vit.decode_heads import OUR_LINEAR_KEYS
from dovit_deploy.families.vit.mmseg import BACKBONE_KEYS, IN_PROJ_KEYS, QKV_KEYS
from dovit_deploy.families.vit.mmseg_heads import DECODE_KEYS, GATE_KEYS
from dovit_deploy.families.vit.segmenter import KEY_MAP as SEGMENTER_MAP
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.families.official_state import random_state

WIDTH, CLASSES = 16, 5
LN = {"type": "LN", "eps": 1e-6}
BN = {"type": "SyncBN", "requires_grad": True}

MASK = {"type": "SegmenterMaskTransformerHead", "in_channels": WIDTH, "channels": WIDTH, "num_classes": CLASSES}
MASK |= {"num_layers": 2, "num_heads": 2, "embed_dims": WIDTH, "dropout_ratio": 0.0, "in_index": -1}
FCN = {
    "type": "FCNHead",
    "in_channels": WIDTH,
    "channels": 8,
    "num_convs": 1,
    "kernel_size": 1,
    "concat_input": False,
}
FCN |= {"num_classes": CLASSES, "norm_cfg": BN, "align_corners": False, "loss_decode": {"type": "CrossEntropyLoss"}}
SETR = {"type": "SETRUPHead", "in_channels": WIDTH, "channels": 8, "num_convs": 1, "up_scale": 4, "kernel_size": 1}
SETR |= {"num_classes": CLASSES, "norm_cfg": BN, "align_corners": False, "in_index": -1}

DOVIT: dict[str, Any] = {
    "type": "DoEncoderDecoder",
    "backbone": {
        "type": "DoViT",
        "img_size": [32, 48],
        "patch_size": 16,
        "embed_dims": WIDTH,
        "num_layers": 4,
        "num_heads": 2,
        "mlp_ratio": 4,
        "out_indices": [1, 2, 3],
        "final_norm": True,
        "norm_cfg": LN,
        "with_cls_token": True,
        "interpolate_mode": "bicubic",
        "exit_conf": 0.9,
        "diff_conf": -1,
        "agg_rate": 0.1,
    },
    "decode_head": MASK,
    "auxiliary_head": [FCN, FCN],
    "train_cfg": {},
    "test_cfg": {"mode": "whole"},
}

SETR_PUP: dict[str, Any] = {
    "type": "EncoderDecoder",
    "backbone": {
        "type": "VisionTransformer",
        "img_size": 32,
        "patch_size": 16,
        "embed_dims": WIDTH,
        "num_layers": 4,
        "num_heads": 2,
        "out_indices": [0, 1, 2, 3],
        "final_norm": True,
        "norm_cfg": LN,
        "with_cls_token": True,
        "interpolate_mode": "bilinear",
    },
    "decode_head": {**SETR, "num_convs": 3, "up_scale": 2, "kernel_size": 3, "in_index": 3},
    "test_cfg": {"mode": "slide", "crop_size": [32, 32], "stride": [20, 20]},
}

SEGMENTER: dict[str, Any] = {
    "image_size": [32, 32],
    "d_model": WIDTH,
    "n_heads": 2,
    "n_layers": 2,
    "n_cls": CLASSES,
    "decoder": "mask_transformer",
}


def dovit_spec() -> VisionTransformerSpec:
    """What DOVIT describes."""
    gates = tuple(GateSpec(layer=layer, head=FcnHead(channels=8)) for layer in (1, 2))
    return VisionTransformerSpec(
        family="dovit",
        size=(32, 48),
        width=WIDTH,
        depth=4,
        heads=2,
        hidden=4 * WIDTH,
        classes=CLASSES,
        gates=gates,
        head=MaskHead(width=WIDTH, heads=2),
    )


def setr_spec(*, depth: int = 4) -> VisionTransformerSpec:
    """What SETR_PUP describes."""
    return VisionTransformerSpec(
        family="setr",
        size=(32, 32),
        width=WIDTH,
        depth=depth,
        heads=2,
        hidden=4 * WIDTH,
        classes=CLASSES,
        position_mode="bilinear",
        head=SetrHead(channels=8, convs=3, up_scale=2, kernel=3),
    )


def segmenter_spec(*, decoder: str = "mask_transformer", extra: int = 1, patch: int = 16) -> VisionTransformerSpec:
    """What SEGMENTER describes."""
    return VisionTransformerSpec(
        family="segmenter",
        size=(32, 32),
        patch=patch,
        width=WIDTH,
        depth=2,
        heads=2,
        hidden=4 * WIDTH,
        extra_tokens=2 if extra == 2 else 1,
        norm_eps=1e-5,
        classes=CLASSES,
        position_mode="bilinear",
        head=LinearHead() if decoder == "linear" else MaskHead(width=WIDTH, heads=1),
    )


def mmseg_map(spec: VisionTransformerSpec) -> KeyMap:
    """The names of mmsegmentation for `spec`: DoViT's own attention, or that of a stock model."""
    attention = QKV_KEYS if spec.family == "dovit" else IN_PROJ_KEYS
    return KeyMap({**BACKBONE_KEYS, **attention, **GATE_KEYS, **DECODE_KEYS[spec.head.kind]})


def dovit_state() -> dict[str, Tensor]:
    """Random weights of DOVIT under official names."""
    return random_state(mmseg_map(dovit_spec()), dovit_spec())


def setr_state() -> dict[str, Tensor]:
    """Random weights of SETR_PUP under official names."""
    return random_state(mmseg_map(setr_spec()), setr_spec())


def segmenter_state(spec: VisionTransformerSpec | None = None) -> dict[str, Tensor]:
    """Random weights of SEGMENTER under official names."""
    return random_state(SEGMENTER_MAP, spec or segmenter_spec())


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A deep copy of `config` with the value at the dotted `path` replaced, or taken out if `value` is `...`."""
    result = copy.deepcopy(config)
    *keys, last = path.split(".")
    part: Any = result
    for key in keys:
        part = part[int(key)] if isinstance(part, list) else part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return result


def config_text(config: dict[str, Any]) -> str:
    """The configuration as mmcv writes it into a checkpoint: Python with dict(...) calls."""

    def written(value: object) -> str:
        if isinstance(value, dict):
            return "dict(" + ", ".join(f"{key}={written(item)}" for key, item in value.items()) + ")"
        if isinstance(value, list):
            return "[" + ", ".join(written(item) for item in value) + "]"
        return repr(value)

    return f"norm_cfg = dict(type='SyncBN')\nmodel = {written(config)}\ndist_params = dict(backend='nccl')\n"


def save_pth(path: Path, state: dict[str, Tensor], **meta: object) -> Path:
    """A file as mmcv's `save_checkpoint` writes it."""
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}, path)
    return path


def dinov2_spec() -> VisionTransformerSpec:
    """A small DINOv2 like the size g, with a linear head."""
    return VisionTransformerSpec(
        family="dinov2",
        size=(28, 28),
        patch=14,
        width=64,
        depth=2,
        heads=1,
        hidden=4 * 64,
        classes=CLASSES,
        position_mode="scale",
        head=LinearHead(),
        mlp="swiglu",
    )


def dinov2_map() -> KeyMap:
    """Official names, beside a head of ours."""
    rows = dinov2.row_keys("register_tokens", "pos_embed", registers=0, patches=4)
    table = {**dinov2.DINOV2_KEYS, **dinov2.SWIGLU_KEYS, **rows, **OUR_LINEAR_KEYS}
    return KeyMap(table, layer_scale=True)


def dinov2_transformers_map() -> KeyMap:
    """The same under the names of transformers' files."""
    names = ("embeddings.register_tokens", "embeddings.position_embeddings")
    rows = dinov2.row_keys(*names, registers=0, patches=4)
    tables = dinov2_transformers
    table = {**tables.TRANSFORMERS_KEYS, **tables.STORED_KEYS, **tables.STORED_SWIGLU_KEYS, **rows, **OUR_LINEAR_KEYS}
    return KeyMap(table, layer_scale=True)


def eomt_spec() -> VisionTransformerSpec:
    """A small EoMT: one layer alone, then one with five queries."""
    return VisionTransformerSpec(
        family="eomt",
        size=(32, 32),
        width=64,
        depth=2,
        heads=4,
        hidden=4 * 64,
        classes=CLASSES,
        extra_tokens=5,
        position_mode="size",
        head=QueryHead(queries=5, joined=1, doublings=2),
    )


def eomt_map() -> KeyMap:
    """The names of transformers."""
    rows = {
        "embeddings.position_embeddings.weight": Ours("positions", rows=tuple(range(5, 9))),
        "embeddings.register_tokens": some_rows("extra_tokens", range(1, 5)),
    }
    table = {**eomt.EOMT_KEYS, **eomt.GELU_KEYS, **rows}
    return KeyMap(table, unused=("attn_mask_probs",), layer_scale=True)


def dinov3_spec() -> VisionTransformerSpec:
    """A small DINOv3 like the size S+, with four registers and a linear head."""
    return VisionTransformerSpec(
        family="dinov3",
        size=(32, 48),
        width=64,
        depth=2,
        heads=4,
        hidden=6 * 64,
        classes=CLASSES,
        extra_tokens=5,
        rotary=True,
        head=LinearHead(),
        mlp="swiglu",
    )


def dinov3_map() -> KeyMap:
    """Official names, beside a head of ours."""
    return KeyMap({**dinov3.DINOV3_KEYS, **dinov3.SWIGLU_KEYS, **OUR_LINEAR_KEYS}, layer_scale=True)


def dinov3_transformers_map() -> KeyMap:
    """The same under the names of transformers' files, which have no periods."""
    table = {**dinov3_transformers.TRANSFORMERS_KEYS, **dinov3_transformers.STORED_KEYS, **OUR_LINEAR_KEYS}
    return KeyMap(table, layer_scale=True, given={PERIODS: periods_from_base(100.0, 16)})


def timm_spec() -> VisionTransformerSpec:
    """A small plain ViT of timm with a linear head."""
    return dinov2_spec().model_copy(update={"family": "vit", "mlp": "gelu", "position_mode": "antialias"})


def timm_map() -> KeyMap:
    """Names of timm, beside a head of ours."""
    tokens = {"cls_token": extra_token(0), "pos_embed": batched("positions")}
    table = {**tokens, **timm_vit.TIMM_KEYS, **timm_vit.GELU_KEYS, **timm_vit.DEIT3_SCALE_KEYS, **OUR_LINEAR_KEYS}
    return KeyMap(table, layer_scale=True)
