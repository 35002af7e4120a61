"""Swin for classification: stem, four stages, the mean of the last tokens, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import StvitSwinSpec
from dovit_deploy.bundle.swin_spec import SwinSpec
from dovit_deploy.models.family import Family
from dovit_deploy.models.static_stage import OneImage, static_stages
from dovit_deploy.models.swin import PatchMerging, SwinStage, stem_from_shape
from dovit_deploy.models.weights_at_size import unchanged_weights


class SwinClassifier(nn.Module):
    """(B, 3, H, W) normalised pixels -> logits (B, K).

    Args:
        spec: the architecture.
        stages: what runs on each grid, (..., n, C) -> (..., n, C).
        trainable: keep batch norms apart.
    """

    def __init__(self, spec: SwinSpec | StvitSwinSpec, stages: Sequence[nn.Module], *, trainable: bool) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem_from_shape(spec, trainable=trainable)
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(
            PatchMerging(spec.stage_width(stage), spec.stage_grid(stage), spec.norm_eps)
            for stage in range(len(stages) - 1)
        )
        width = spec.stage_width(len(stages) - 1)
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.head = nn.Linear(width, spec.classes)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> tokens (B, n, C) of the first grid."""
        return self.stem(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor) -> Tensor:
        """(n, C) or (B, n, C) tokens of the first grid -> logits (B, K), B = 1 for (n, C)."""
        for number, stage in enumerate(self.stages):
            tokens = stage(self.merges[number - 1](tokens) if number else tokens)
        return self.head(self.norm(tokens).mean(-2, keepdim=True)).reshape(-1, self.spec.classes)  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decode(self.embed(pixels))


def ordinary_stage(
    spec: SwinSpec | StvitSwinSpec, stage: int, *, layer_scale: bool = False, trainable: bool
) -> SwinStage:
    """A stage of ordinary blocks; a grid of a single window is not shifted."""
    shifted = min(spec.stage_grid(stage)) > spec.window
    window = spec.stage_window(stage)
    return SwinStage(spec, stage, window=window, shifted=shifted, layer_scale=layer_scale, trainable=trainable)


def swin_from_spec(spec: SwinSpec, *, trainable: bool = False) -> SwinClassifier:
    """The plain network."""
    stages = [ordinary_stage(spec, stage, trainable=trainable) for stage in range(len(spec.depths))]
    return SwinClassifier(spec, stages, trainable=trainable)


FAMILY = Family(
    spec=SwinSpec,
    build=swin_from_spec,
    stages=static_stages,
    dense=OneImage,
    state_at_size=unchanged_weights(swin_from_spec),
)
