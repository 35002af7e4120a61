"""One forward pass in training, whatever the family: the answer to a batch, and what the loss may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call

from dovit_deploy.families.evovit.deit import EvoDeit, in_raster_order
from dovit_deploy.families.registry import spec_at_size
from dovit_deploy.families.stvit.network import StvitSegmenter, StvitTrunk
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.train.masked import MaskedOutput, Passing, attend_without, decode, embed, masked_forward

# Evo-ViT in training: a batch (B, 3, H, W) -> logits, with tokens selected per picture exactly as at inference.
#
# Scores only sort, so nothing of the choice is differentiated; what the chosen tokens compute is. The layers are those
# of `EvoDeit.evolve`, which takes batches as it takes single images.


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


# STViT-R in training: a batch (B, 3, H, W) of pictures or crops of any size -> logits.
#
# All windows and neighbourhoods follow from the size, and no weight belongs to a place in the picture. So a crop goes
# through stages laid out for its own size with the parameters of the network that is trained.


def recovered_forward(model: StvitSegmenter, pixels: Tensor, origin: Tensor | None = None) -> MaskedOutput:
    """The whole network on `pixels`: logits, the features that the head saw, and no gates.

    Differentiable; batch norms in training mode take in the batch's statistics, whatever its size. `origin` is not
    read: there are no position embeddings.
    """
    del origin
    spec = spec_at_size(model.spec, (pixels.shape[-2], pixels.shape[-1]))
    trunk = _laid_out(spec, pixels.device)
    trunk.train(model.training)
    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stages = functional_call(trunk, {name: entries[name] for name in trunk.state_dict()}, (pixels,))
    features = model.norm(stages[-1])
    own = model.head.grid
    # It has the one part that is read, under the same name.
    logits = decode(cast("VisionTransformer", model), features, spec.head_grid)
    model.head.grid = own
    return MaskedOutput(logits, features, ())


@lru_cache(maxsize=8)
def _laid_out(spec: StvitSegmenterSpec, device: torch.device) -> StvitTrunk:
    """Stem and stages for the size of `spec`, without weights of their own; their tables lie on `device`."""
    with torch.device("meta"):
        trunk = StvitTrunk(spec, trainable=True)
    for module in trunk.modules():
        for name, table in list(module.named_buffers(recurse=False)):
            if not table.is_meta:
                setattr(module, name, table.to(device))
    return trunk


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
