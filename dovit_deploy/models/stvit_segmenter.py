"""Segmentation with STViT-R: a decode head on the recovered tokens of its third stage. No official code has one."""

from __future__ import annotations

from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import REDUCED_STAGE, StvitSegmenterSpec
from dovit_deploy.models.family import Family
from dovit_deploy.models.heads import decode_head_from_spec
from dovit_deploy.models.static_stage import no_dense, static_stages
from dovit_deploy.models.stvit_trunk import StvitTrunk
from dovit_deploy.models.weights_at_size import unchanged_weights


class StvitSegmenter(StvitTrunk):
    """(B, 3, H, W) normalised pixels -> logits (B, K, h', w') from the recovered tokens of the last stage."""

    def __init__(self, spec: StvitSegmenterSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, trainable=trainable)
        self.spec = spec
        width = spec.stage_width(REDUCED_STAGE)
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.head = decode_head_from_spec(spec.head, width, spec.classes, spec.head_grid, trainable=trainable)

    def decode(self, tokens: Tensor) -> Tensor:
        """(n, C) or (B, n, C) tokens of the first grid -> logits."""
        return self.head(self.norm(self.walk(tokens)[-1]))  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decode(self.embed(pixels))


STVIT_SEGMENTER = Family(
    spec=StvitSegmenterSpec,
    build=StvitSegmenter,
    stages=static_stages,
    dense=no_dense,
    state_at_size=unchanged_weights(StvitSegmenter),
)
