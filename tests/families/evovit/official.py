"""Tiny checkpoints of Evo-ViT, plain DeiT and LeViT as the official projects write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dovit_deploy.checkpoints.keys import KeyMap
from dovit_deploy.families.evovit.deit_reader import DEIT_KEYS, EVO_DEIT_KEYS
from dovit_deploy.families.evovit.evo_levit_reader import evo_levit_key_map
from dovit_deploy.families.evovit.spec import ClassTokenHead, EvoDeitSpec, EvoLevitSpec, TokenSelection
from tests.families.official_state import random_state
from tests.tiny_evovit import tiny_levit_spec

DEIT: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 12,
    "num_heads": 2,
    "mlp_ratio": 4,
    "num_classes": 5,
    "tradeoff": [1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5],
    "prune_ratio": [1, 1, 1, 1, 0.7, 0.7, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5],
    "drop_path_rate": 0.1,
}
LEVIT: dict[str, Any] = {
    "img_size": 64,
    "C": "8_12_16",
    "D": 4,
    "X": "3_2_1",
    "N": "1_2_3",
    "num_classes": 5,
    "prune_ratio": [[1, 1, 0.5, 1, 0.5, 0.5], [0.4, 0.5, 0.6]],
    "drop_path": 0.1,
}


def deit_spec(**changes: Any) -> EvoDeitSpec:
    """What DEIT describes."""
    fields: dict[str, Any] = {
        "size": (64, 64),
        "width": 16,
        "depth": 12,
        "heads": 2,
        "hidden": 64,
        "classes": 5,
        "selections": (TokenSelection(first=4, last=8, ratio=0.7), TokenSelection(first=8, last=12, ratio=0.5)),
        "tradeoffs": tuple(map(float, DEIT["tradeoff"])),
    }
    return EvoDeitSpec(**{**fields, **changes})


def plain_spec(*, extra: int = 1) -> EvoDeitSpec:
    """A plain DeiT of the same size."""
    return deit_spec(
        family="deit",
        selections=(),
        tradeoffs=(),
        extra_tokens=extra,
        head=ClassTokenHead(),
        position_mode="bicubic",
    )


def levit_spec(**changes: Any) -> EvoLevitSpec:
    """What LEVIT describes."""
    spec = tiny_levit_spec(depths=(3, 2, 1), selections=((2, 3, 0.4), (4, 5, 0.5), (5, 6, 0.6)), distilled=True)
    return EvoLevitSpec.model_validate({**spec.model_dump(), **changes})


def deit_state() -> dict[str, Tensor]:
    """Random weights of DEIT under official names, with the heads that only training reads."""
    state = random_state(KeyMap(EVO_DEIT_KEYS), deit_spec())
    train_only = {"head_cls.weight": (5, 16), "head_cls.bias": (5,), "norm_cls.weight": (16,), "norm_cls.bias": (16,)}
    return {**state, **{name: torch.ones(shape) for name, shape in train_only.items()}}


def plain_state(*, extra: int = 1) -> dict[str, Tensor]:
    """Random weights of a plain DeiT."""
    return random_state(KeyMap(DEIT_KEYS), plain_spec(extra=extra))


def levit_state() -> dict[str, Tensor]:
    """Random weights of LEVIT by the layer-wise view; trade-offs and train-only heads are there."""
    return {**random_state(evo_levit_key_map(levit_spec()), levit_spec()), "head_cls.l.weight": torch.zeros(5, 16)}


STAGE_VIEW = {
    # Stage 1: two unpruned layers one by one, the third in a module; the subsampling and its MLP.
    "blocks.0.m1": "stage_blocks.0",
    "blocks.0.m2": "stage_blocks.1",
    "blocks.1.m1": "stage_blocks.2",
    "blocks.1.m2": "stage_blocks.3",
    "blocks.2.m1": "stage_blocks.4.m.0",
    "blocks.2.m2": "stage_blocks.4.m.1",
    "blocks.3": "stage_blocks.5",
    "blocks.4": "stage_blocks.6",
    # Stage 2: one unpruned layer, one in a module.
    "blocks.5.m1": "stage_blocks.7",
    "blocks.5.m2": "stage_blocks.8",
    "blocks.6.m1": "stage_blocks.9.m.0",
    "blocks.6.m2": "stage_blocks.9.m.1",
    "blocks.7": "stage_blocks.10",
    "blocks.8": "stage_blocks.11",
    # Stage 3: its only layer in a module.
    "blocks.9.m1": "stage_blocks.12.m.0",
    "blocks.9.m2": "stage_blocks.12.m.1",
}
"""Written out from the source's constructor, apart from the package's own rule."""


def in_stage_view(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the stage view alone."""
    result = {}
    for name, tensor in state.items():
        prefix = next((one for one in STAGE_VIEW if name.startswith(one + ".")), None)
        result[name if prefix is None else STAGE_VIEW[prefix] + name.removeprefix(prefix)] = tensor.clone()
    return result
