"""The host's loop over PyTorch stages, as short as it can be: stage, take the front of its order, next stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dovit_deploy.families.vit.network import VisionTransformer, stages_from_model


@dataclass(frozen=True)
class StagedRun:
    """One image through the stages; per gate: what left it."""

    tokens: list[Tensor]
    """(E + N, C) before each gate."""
    orders: list[Tensor]
    indices: list[Tensor]
    """(kept,) int64: what was taken into the stage behind the gate."""
    confidences: list[Tensor]
    labels: list[Tensor]
    kept: list[int]
    logits: Tensor
    answers: list[Tensor] = field(default_factory=list)
    """(E + N, C) of each gate, with a lens: what the decode head is to see of each token if it stops there."""


def run_staged(
    model: VisionTransformer,
    pixels: Tensor,
    *,
    thresholds: Tensor,
    floor: float = 0.0,
    indices: Sequence[Tensor] | None = None,
) -> StagedRun:
    """`pixels` (1, 3, H, W); `thresholds` (gates, K); `indices` replays what runs after each gate."""
    first, *later = stages_from_model(model)
    low = torch.tensor(floor, dtype=torch.float32)
    with torch.inference_mode():
        if not later:
            logits, kept = first(pixels)
            return StagedRun([], [], [], [], [], kept.tolist(), logits)
        leaving = [first(pixels, thresholds[0], low)]
        used: list[Tensor] = []
        for number, stage in enumerate(later, start=1):
            tokens, order, count, _, _, *carried = leaving[-1]
            used.append(order[: int(count)] if indices is None else indices[number - 1])
            if stage is later[-1]:
                logits = stage(tokens, used[-1], *carried)
            else:
                leaving.append(stage(tokens, used[-1], thresholds[number], low, *carried))
    columns = [list(column) for column in zip(*leaving, strict=True)]
    tokens_before, orders, _, confidences, labels, *carried = columns
    kept_counts = [model.spec.tokens, *(len(index) for index in used)]
    return StagedRun(
        tokens_before, orders, used, confidences, labels, kept_counts, logits, carried[0] if carried else []
    )
