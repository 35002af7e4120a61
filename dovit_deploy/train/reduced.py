"""STViT-R's segmenter in training: batches of crops of any size, and what its weights start as.

All windows and neighbourhoods follow from the size, and no weight belongs to a place, so a crop goes through a network
laid out for its own size with the parameters of the one that is trained.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dovit_deploy.bundle.spec import Head, LinearHead, MaskHead, SetrHead
from dovit_deploy.bundle.stvit_spec import StvitSegmenterSpec
from dovit_deploy.models.build import spec_at_size
from dovit_deploy.models.heads import MaskTransformerHead
from dovit_deploy.models.stvit_segmenter import StvitSegmenter
from dovit_deploy.models.stvit_trunk import StvitTrunk
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.models.window_attention import RelativeBias
from dovit_deploy.train.masked import MaskedOutput, decode
from dovit_deploy.train.network import NetworkChoice


def reduced_forward(model: StvitSegmenter, pixels: Tensor) -> MaskedOutput:
    """The whole network on `pixels` (B, 3, H, W) of any size: logits, the features that the head saw, and no gates.

    Differentiable; batch norms in training mode take in the batch's statistics, whatever the size.
    """
    spec = spec_at_size(model.spec, (pixels.shape[-2], pixels.shape[-1]))
    trunk = _laid_out(spec, pixels.device)
    trunk.train(model.training)
    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shared = {name: entries[name] for name in trunk.state_dict()}
    stages = functional_call(trunk, shared, (pixels,))
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


def segmenter_from_choice(choice: NetworkChoice, size: tuple[int, int], classes: int) -> StvitSegmenterSpec:
    """The segmenter to train from scratch on images of `size` (height, width).

    `width` is that of the reduced stage, as of the ViT's layers; `depth` counts its blocks, a multiple of six.
    """
    heads = choice.heads or max(1, choice.width // 64)
    return StvitSegmenterSpec(
        size=size,
        width=choice.width // 4,
        depths=(2, 2, choice.depth),
        heads=(max(1, heads // 4), max(1, heads // 2), heads),
        classes=classes,
        head=_decode_head(choice, heads),
    )


def _decode_head(choice: NetworkChoice, heads: int) -> Head:
    if choice.head == "mask":
        return MaskHead(width=choice.width, layers=2, heads=heads)
    if choice.head == "linear":
        return LinearHead()
    return SetrHead(channels=choice.head_channels, convs=2, up_scale=2, kernel=3)


def initialise_reduced(model: StvitSegmenter, seed: int) -> None:
    """Truncated normal (0.02) for linear layers and tables of biases, He for convolutions, zero biases.

    Norms and layer scales stay as they are built: at one, and at the source's 1e-5.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        elif isinstance(module, RelativeBias):
            nn.init.trunc_normal_(module.table, std=0.02, generator=generator)
        elif isinstance(module, MaskTransformerHead):
            # Equal class tokens would stay equal for ever.
            nn.init.trunc_normal_(module.class_tokens, std=0.02, generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
