"""Evo-ViT in training: a batch (B, 3, H, W) -> logits, with tokens selected per picture exactly as at inference.

Scores only sort, so nothing of the choice is differentiated; what the chosen tokens compute is. The layers are those
of `EvoDeit.evolve`, which takes batches as it takes single images.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from dovit_deploy.models.evovit_deit import EvoDeit, in_raster_order
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.masked import MaskedOutput, attend_without, decode, embed


def evolved_forward(model: EvoDeit, pixels: Tensor, origin: Tensor | None = None) -> MaskedOutput:
    """The whole segmentation network on `pixels` (B, 3, H, W).

    `origin` (B, 2) int64 places each crop's grid on the model's: row and column of its first token there.
    """
    # It has all the parts that these two read, under the same names.
    parts = cast("VisionTransformer", model)
    tokens, grid = embed(parts, pixels, origin)
    evolved = model.evolve(tokens, model.spec.selections, attend_without(None))
    features = model.norm(in_raster_order(evolved, model.spec.extra_tokens))
    return MaskedOutput(decode(parts, features, grid), features, ())
