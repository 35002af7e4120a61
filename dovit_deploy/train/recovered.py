"""STViT-R in training: a batch (B, 3, H, W) of pictures or crops of any size -> logits.

All windows and neighbourhoods follow from the size, and no weight belongs to a place in the picture. So a crop goes
through stages laid out for its own size with the parameters of the network that is trained.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call

from dovit_deploy.bundle.stvit_spec import StvitSegmenterSpec
from dovit_deploy.models.build import spec_at_size
from dovit_deploy.models.stvit_segmenter import StvitSegmenter
from dovit_deploy.models.stvit_trunk import StvitTrunk
from dovit_deploy.models.vision_transformer import VisionTransformer
from dovit_deploy.train.masked import MaskedOutput, decode


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
