"""The host's loop over PyTorch stages, as short as it can be: stage, take the front of its order, next stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovit_deploy.families.vit.network import VisionTransformer, stages_from_model
from dovit_deploy.families.vit.spec import VisionTransformerSpec


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


class Carrier:
    """What stages give for later ones beside the tokens, by name."""

    def __init__(self, spec: VisionTransformerSpec) -> None:
        self.spec = spec
        self.known: dict[str, Tensor] = {}

    def onward(self, stage: int, given: Sequence[Tensor]) -> list[Tensor]:
        """From the further outputs of stage `stage` to the further inputs of the next one."""
        names = [one.name for one in self.spec.carried if stage in one.given_by]
        self.known |= dict(zip(names, given, strict=True))
        return [self.known[one.name] for one in self.spec.carried if stage + 1 in one.taken_by]


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
        carrier = Carrier(model.spec)
        for number, stage in enumerate(later, start=1):
            tokens, order, count, _, _, *given = leaving[-1]
            carried = carrier.onward(number - 1, given)
            used.append(order[: int(count)] if indices is None else indices[number - 1])
            if stage is later[-1]:
                logits = stage(tokens, used[-1], *carried)
            else:
                leaving.append(stage(tokens, used[-1], thresholds[number], low, *carried))
    tokens_before, orders, _, confidences, labels = ([outputs[number] for outputs in leaving] for number in range(5))
    kept_counts = [model.spec.tokens, *(len(index) for index in used)]
    return StagedRun(tokens_before, orders, used, confidences, labels, kept_counts, logits)
