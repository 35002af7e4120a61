"""STViT-R in training: a batch (B, 3, H, W) -> logits; its layers take batches as they take single images."""

from __future__ import annotations

from torch import Tensor

from dovit_deploy.models.stvit_segmenter import StvitSegmenter
from dovit_deploy.train.masked import MaskedOutput


def recovered_forward(model: StvitSegmenter, pixels: Tensor, origin: Tensor | None = None) -> MaskedOutput:
    """The segmentation network on whole inputs: its windows are laid out for one grid, so there is no crop to place."""
    del origin
    features = model.norm(model.walk(model.embed(pixels))[-1])
    return MaskedOutput(model.head(features), features, ())
