"""One forward pass in training, whatever the family: the answer to a batch, and what the loss may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dovit_deploy.models.evovit_deit import EvoDeit
from dovit_deploy.models.stvit_segmenter import StvitSegmenter
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.evolved import evolved_forward
from dovit_deploy.train.masked import MaskedOutput, Passing, masked_forward
from dovit_deploy.train.recovered import recovered_forward

Network = VisionTransformer | EvoDeit | StvitSegmenter


def _evolved(model: EvoDeit, pixels: Tensor, origin: Tensor | None) -> MaskedOutput:
    output = evolved_forward(model, pixels, origin=origin)
    return MaskedOutput(output.logits, output.features, ())


FIXED: dict[type, Callable[[Any, Tensor, Tensor | None], MaskedOutput]] = {
    EvoDeit: _evolved,
    StvitSegmenter: recovered_forward,
}
"""Networks whose token counts are fixed: there is nothing to decide, so they take pictures and their places alone."""


def training_forward(
    model: Network,
    pixels: Tensor,
    *,
    passing: Passing | None = None,
    origin: Tensor | None = None,
    detach_gates: bool = False,
    detach_stopped: bool = False,
) -> MaskedOutput:
    """The whole network on `pixels` (B, 3, H, W); all else as `masked_forward` takes it, and nobody else needs it."""
    if isinstance(model, VisionTransformer):
        return masked_forward(
            model,
            pixels,
            passing=passing,
            origin=origin,
            detach_gates=detach_gates,
            detach_stopped=detach_stopped,
        )
    return FIXED[type(model)](model, pixels, origin)
