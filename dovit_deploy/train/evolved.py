"""Evo-ViT in training: a batch (B, 3, H, W) -> logits, with tokens selected per picture exactly as at inference.

Scores only sort, so nothing of the choice is differentiated; what the chosen tokens compute is. The layers are those
of `EvoDeit.evolve`, which takes batches as it takes single images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from dovit_deploy.models.evovit_deit import EvoDeit, in_raster_order
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.masked import attend_without, decode, embed


@dataclass(frozen=True)
class EvolvedOutput:
    """`logits` (B, K, h', w') of the decode head, the `features` (B, N, C) that it saw, and per selection the patches
    (B, N) bool that ran, in raster order."""

    logits: Tensor
    features: Tensor
    chosen: tuple[Tensor, ...]


def evolved_forward(
    model: EvoDeit, pixels: Tensor, *, selecting: bool = True, origin: Tensor | None = None
) -> EvolvedOutput:
    """The whole segmentation network on `pixels` (B, 3, H, W); without `selecting` every token runs in every layer.

    `origin` (B, 2) int64 places each crop's grid on the model's: row and column of its first token there.
    """
    # It has all the parts that these two read, under the same names.
    parts = cast("VisionTransformer", model)
    tokens, grid = embed(parts, pixels, origin)
    evolved = model.evolve(tokens, model.spec.selections if selecting else (), attend_without(None))
    features = model.norm(in_raster_order(evolved, model.spec.extra_tokens))
    return EvolvedOutput(decode(parts, features, grid), features, tuple(one.bool() for one in evolved.chosen))
