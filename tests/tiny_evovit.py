"""Tiny Evo-ViTs in code: specs with every option, seeded weights under which scores differ and choices matter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.bundle.manifest import ClassEntry, Preprocessing
from dovit_deploy.checkpoints.checkpoint import Checkpoint
from dovit_deploy.families.evovit.deit import EvoDeit
from dovit_deploy.families.evovit.evo_levit import EvoLevit
from dovit_deploy.families.evovit.spec import (
    EvoDeitSpec,
    EvoLevitSpec,
    LevitStage,
    LevitSubsample,
    PooledHead,
    TokenSelection,
)
from dovit_deploy.families.parts import ConvStem, PatchStem
from tests.tiny import decode_head

Cut = tuple[int, int, float]
"""First layer, one past the last, ratio."""


def tiny_deit_spec(
    *,
    size: tuple[int, int] = (48, 64),
    selections: Sequence[Cut] = ((1, 3, 0.5), (3, 4, 0.4)),
    depth: int = 5,
    width: int = 16,
    heads: int = 2,
    classes: int = 5,
    tradeoffs: Sequence[float] | None = None,
    head: str = "pooled",
    stem: str = "patch",
    **fields: Any,
) -> EvoDeitSpec:
    """A few thousand weights; `head` is "pooled" or one of `tiny.decode_head`'s."""
    return EvoDeitSpec(
        size=size,
        stem=ConvStem(widths=(4, 6, 8)) if stem == "conv" else PatchStem(),
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        classes=classes,
        selections=tuple(TokenSelection(first=first, last=last, ratio=ratio) for first, last, ratio in selections),
        tradeoffs=tuple(tradeoffs or [1.0, 0.6, 0.5, 0.3, 0.7, 0.2, 0.9, 0.5][:depth]),
        head=PooledHead() if head == "pooled" else decode_head(head, width=width, heads=heads),
        **fields,
    )


def tiny_levit_spec(
    *,
    size: int = 64,
    depths: Sequence[int] = (2, 2, 1),
    selections: Sequence[Cut] = ((1, 2, 0.5), (2, 4, 0.5)),
    classes: int = 5,
    distilled: bool = True,
    tradeoff: float | None = None,
) -> EvoLevitSpec:
    """Stages 8, 12, 16 ... wide."""
    stages = tuple(
        LevitStage(width=8 + 4 * number, depth=depth, heads=1 + number, key=4, value=8, hidden=2 * (8 + 4 * number))
        for number, depth in enumerate(depths)
    )
    return EvoLevitSpec(
        size=(size, size),
        stages=stages,
        subsamples=tuple(
            LevitSubsample(heads=before.width // 4, key=4, value=16, hidden=2 * after.width)
            for before, after in itertools.pairwise(stages)
        ),
        classes=classes,
        distilled=distilled,
        selections=tuple(TokenSelection(first=first, last=last, ratio=ratio) for first, last, ratio in selections),
        tradeoff=tradeoff,
    )


def network(spec: EvoDeitSpec | EvoLevitSpec) -> EvoDeit | EvoLevit:
    """The network of `spec`, its weights unset."""
    return EvoDeit(spec) if isinstance(spec, EvoDeitSpec) else EvoLevit(spec)


def tiny_evo_state(spec: EvoDeitSpec | EvoLevitSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights of `spec`, float32; queries and keys are large, so that attention distinguishes tokens."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in network(spec).state_dict().items()}
    draw = np.random.default_rng(seed)
    return {name: _parameter(name, shapes[name], draw) for name in sorted(shapes)}


def tiny_evo_model(spec: EvoDeitSpec | EvoLevitSpec, seed: int = 0) -> EvoDeit | EvoLevit:
    """The network of `spec` with `tiny_evo_state`'s weights, in evaluation mode."""
    model = network(spec)
    model.load_state_dict(tiny_evo_state(spec, seed))
    return model.eval().requires_grad_(False)


def tiny_evo_checkpoint(spec: EvoDeitSpec | EvoLevitSpec, seed: int = 0) -> Checkpoint:
    """A checkpoint of `spec` with `tiny_evo_state`'s weights."""
    return Checkpoint(
        spec=spec,
        state=tiny_evo_state(spec, seed),
        preprocessing=Preprocessing(
            mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), assumed=False, stride=None
        ),
        classes=tuple(ClassEntry(name=f"class {n}", color=(40 * n % 256, 90, 7)) for n in range(spec.classes)),
        thresholds=(),
        floor=0.0,
        slide_size=None,
        source="tiny.safetensors",
        source_sha256="0" * 64,
    )


def _parameter(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> Tensor:
    noise = draw.normal(0.0, 1.0, shape)
    last = name.split(".")[-1]
    if "norm" in name:
        values = 0.2 * noise + (1.0 if last == "weight" else 0.0)
    elif last in ("positions", "extra_tokens", "class_token", "class_tokens"):
        values = 0.7 * noise
    elif last in ("bias", "tradeoff"):
        values = (0.2 if last == "bias" else 1.5) * noise
    else:
        gain = 2.0 if ".query." in name or ".key." in name else 1.2
        values = gain * noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values).float()
