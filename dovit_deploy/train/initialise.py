"""Initial weights for training from scratch."""

from __future__ import annotations

import torch
from torch import nn

from dovit_deploy.models.vision_transformer import VisionTransformer


def initialise(model: VisionTransformer, seed: int) -> None:
    """Truncated normal (0.02) for linear layers and embeddings, He for convolutions, zero biases; norms stay."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for embedding in (model.extra_tokens, model.positions):
        nn.init.trunc_normal_(embedding, std=0.02, generator=generator)
