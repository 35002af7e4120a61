"""One forward pass in training, whatever the family: the answer to a batch, and what the loss may look at.

DoViT passes tokens with masks (`masked`) or takes them out (`gathered`). The families whose token counts are fixed have
nothing to decide; they need no masks, and take crops of any size as the deployed network takes an image.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.func import functional_call

from dovit_deploy.families.evovit.deit import EvoDeit, in_raster_order
from dovit_deploy.families.registry import spec_at_size
from dovit_deploy.families.stvit.network import StvitSegmenter, StvitTrunk
from dovit_deploy.families.stvit.spec import StvitSegmenterSpec
from dovit_deploy.families.vit.network import VisionTransformer
from dovit_deploy.train.gathered import Quotas, gathered_forward
from dovit_deploy.train.masked import Passing, TrainingOutput, attend_without, decode, embed, masked_forward
from dovit_deploy.train.skips import Skips

TrainableNetwork = VisionTransformer | EvoDeit | StvitSegmenter


def training_forward(
    model: TrainableNetwork,
    pixels: Tensor,
    *,
    passing: Passing | Quotas | None = None,
    origin: Tensor | None = None,
    detach_gates: bool = False,
    detach_stopped: bool = False,
    skips: Skips | None = None,
) -> TrainingOutput:
    """The whole network on `pixels` (B, 3, H, W).

    Only vision transformers look at `passing`, `detach_gates`, `detach_stopped` and `skips`, as `masked_forward` and
    `gathered_forward` take them.
    """
    if isinstance(model, StvitSegmenter):
        # It has no position embeddings, so that it does not matter where a crop was cut out.
        return stvit_forward(model, pixels)
    if isinstance(model, EvoDeit):
        return evovit_forward(model, pixels, origin=origin)
    if isinstance(passing, Quotas):
        return gathered_forward(
            model,
            pixels,
            quotas=passing,
            origin=origin,
            detach_gates=detach_gates,
            detach_stopped=detach_stopped,
            skips=skips,
        )
    return masked_forward(
        model,
        pixels,
        passing=passing,
        origin=origin,
        detach_gates=detach_gates,
        detach_stopped=detach_stopped,
        skips=skips,
    )


def evovit_forward(
    model: EvoDeit, pixels: Tensor, *, selecting: bool = True, origin: Tensor | None = None
) -> TrainingOutput:
    """Evo-ViT on `pixels` (B, 3, H, W), with tokens selected per image exactly as at inference.

    Scores only sort, so nothing of the choice is differentiated; what the chosen tokens compute is. Without
    `selecting` every token runs in every layer. `origin` is as `embed` takes it.
    """
    embedded = embed(model, pixels, origin)
    run = model.run(embedded.tokens, model.spec.selections if selecting else (), attend_without(None))
    features = model.norm(in_raster_order(run))
    logits = decode(model.head, features, embedded.grid)
    return TrainingOutput(logits, features, chosen=tuple(one.bool() for one in run.chosen))


def stvit_forward(model: StvitSegmenter, pixels: Tensor) -> TrainingOutput:
    """STViT-R's segmenter on images or crops `pixels` (B, 3, H, W) of any size.

    All windows and neighbourhoods follow from the size, and no weight belongs to a position. So a crop goes through
    stages laid out for its own size with the parameters of the network that is trained. Batch norms in training mode
    take in the batch's statistics, whatever its size.
    """
    spec = spec_at_size(model.spec, (pixels.shape[-2], pixels.shape[-1]))
    # The trunk is not the model's: its tables are of this size, its parameters are lent for this pass.
    trunk = _trunk_at_size(spec, pixels.device)
    trunk.train(model.training)
    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stages = functional_call(trunk, {name: entries[name] for name in trunk.state_dict()}, (pixels,))
    features = model.norm(stages[-1])
    return TrainingOutput(decode(model.head, features, spec.head_grid), features)


@lru_cache(maxsize=8)
def _trunk_at_size(spec: StvitSegmenterSpec, device: torch.device) -> StvitTrunk:
    """Stem and stages for the size of `spec`, without weights of their own; their tables are on `device`."""
    # Parameters on the meta device take no memory; tables are real wherever they are built.
    with torch.device("meta"):
        trunk = StvitTrunk(spec, trainable=True)
    for module in trunk.modules():
        for name, table in list(module.named_buffers(recurse=False)):
            if not table.is_meta:
                setattr(module, name, table.to(device))
    return trunk
