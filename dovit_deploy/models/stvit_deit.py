"""STViT on DeiT, composed after the text of the paper of STViT-R's blocks. Not verified: no official code exists."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.bundle.stvit_deit_spec import MADE_BY, StvitDeitSpec
from dovit_deploy.models.family import Family, State
from dovit_deploy.models.semantic_blocks import CrossAttention, CrossBlock, WindowPooling
from dovit_deploy.models.static_stage import no_dense, static_stages
from dovit_deploy.models.window_attention import BlockShape
from dovit_deploy.models.windows import pooling_table


class StvitDeit(nn.Module):
    """(B, 3, H, W) normalised pixels -> logits (B, K).

    Pooled patches look at all patches; what they become, plus learned tokens, looks at itself and all patches; from
    there on, only these few tokens run. The head sees their mean.
    """

    def __init__(self, spec: StvitDeitSpec, *, trainable: bool = False) -> None:
        super().__init__()
        shape = BlockShape(spec.width, spec.heads, spec.hidden, spec.norm_eps, trainable)
        self.spec = spec
        self.projection = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)
        self.positions = nn.Parameter(torch.zeros(spec.patches, spec.width))
        self.global_tokens = nn.Parameter(torch.zeros(spec.semantic_tokens, spec.width))
        self.blocks = nn.ModuleList(CrossBlock(shape, CrossAttention(shape)) for _ in range(spec.depth))
        whole = np.arange(spec.patches)[None]
        self.pool = WindowPooling(whole, spec.patches, pooling_table(spec.grid, spec.samples))
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.head = nn.Linear(spec.width, spec.classes)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, N, C), without position embeddings."""
        return self.projection(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor) -> Tensor:
        """(N, C) or (B, N, C) from `embed` -> logits (B, K), B = 1 for (N, C)."""
        first = self.spec.reduced_from
        x = tokens + self.positions
        for block in self.blocks[:first]:
            x = block(x)
        semantic = self.blocks[first](self.pool(x), x)
        semantic = self.blocks[first + 1](semantic + self.global_tokens, torch.cat([semantic, x], -2))
        for block in self.blocks[first + MADE_BY :]:
            semantic = block(semantic)
        return self.head(self.norm(semantic).mean(-2, keepdim=True)).reshape(-1, self.spec.classes)  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decode(self.embed(pixels))


def state_at_size(state: State, spec: StvitDeitSpec, target: StvitDeitSpec) -> State:
    """Position embeddings resized as DeiT's are (bicubic), the rest as it is."""
    if spec.grid == target.grid:
        return state
    image = state["positions"].T.reshape(1, -1, *spec.grid)
    resized = functional.interpolate(image, size=target.grid, mode="bicubic", align_corners=False)
    return {**state, "positions": resized.flatten(2)[0].T.contiguous()}


STVIT_DEIT = Family(spec=StvitDeitSpec, build=StvitDeit, stages=static_stages, dense=no_dense, state_at_size=state_at_size)
