"""The network's parts under their names: stem, extra tokens, positions, blocks, gates, norm, decode head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dovit_deploy.bundle.spec import VisionTransformerSpec
from dovit_deploy.models.gate import gate_from_spec
from dovit_deploy.models.heads import decode_head_from_spec
from dovit_deploy.models.layers import Block
from dovit_deploy.models.stem import padded, stem_from_spec


class VisionTransformer(nn.Module):
    """Holds the parameters of every supported ViT; `staged` and `train` say in which order the parts run.

    Args:
        spec: the architecture.
        trainable: keep batch norms apart (training); otherwise they are folded into their projections.
    """

    def __init__(self, spec: VisionTransformerSpec, *, trainable: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem_from_spec(spec, trainable=trainable)
        if spec.extra_tokens:
            self.extra_tokens = nn.Parameter(torch.zeros(spec.extra_tokens, spec.width))
        self.positions = nn.Parameter(torch.zeros(spec.tokens, spec.width))
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.hidden, spec.norm_eps) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps) if spec.final_norm else nn.Identity()
        self.gates = nn.ModuleList(gate_from_spec(gate, spec, trainable=trainable) for gate in spec.gates)
        self.head = decode_head_from_spec(spec.head, spec.width, spec.classes, spec.grid, trainable=trainable)

    def embed(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (E + N, C): extra tokens first, position embeddings added."""
        patches = self.stem(padded(pixels, self.spec.patch)).flatten(2)[0].transpose(0, 1)
        tokens = torch.cat([self.extra_tokens, patches]) if self.spec.extra_tokens else patches
        return tokens + self.positions

    def decode(self, tokens: Tensor) -> Tensor:
        """(E + N, C), every token at its last value -> logits (1, K, h, w); the norm covers stopped tokens too."""
        return self.head(self.norm(tokens)[self.spec.extra_tokens :])  # type: ignore[no-any-return]
