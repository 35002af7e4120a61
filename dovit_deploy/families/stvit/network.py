"""STViT-R's networks: classifier, backbone and segmenter; and STViT on DeiT.

All run every layer on every token they have: what is saved is in the stage of semantic tokens (`semantic`), whose
number is fixed. Sources: changsn/STViT-R (classifier), changsn/STViT-R-Object-Detection (backbone). No official code
has a segmenter; STViT on DeiT is composed after the text of the paper, for which no code was released, and is not
verified.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.families.folding import State
from dovit_deploy.families.heads import decode_head_from_spec
from dovit_deploy.families.layers import interpolated_positions, padded
from dovit_deploy.families.registry import Family
from dovit_deploy.families.stages import FixedNetwork
from dovit_deploy.families.stvit.attention import BlockShape
from dovit_deploy.families.stvit.semantic import (
    AnySizeSemanticStage,
    CrossAttention,
    CrossBlock,
    SemanticStage,
    WindowPooling,
)
from dovit_deploy.families.stvit.spec import (
    MADE_BY,
    REDUCED_STAGE,
    AnySizeShape,
    StvitBackboneSpec,
    StvitDeitSpec,
    StvitSegmenterSpec,
    StvitSwinSpec,
)
from dovit_deploy.families.stvit.swin import PatchMerging, SwinClassifier, SwinStage, ordinary_stage, stem_from_shape
from dovit_deploy.families.stvit.windows import pooling_table


def stvit_swin_from_spec(spec: StvitSwinSpec, *, trainable: bool = False) -> SwinClassifier:
    """STViT-R for classification: ordinary stages but for the third."""
    stages: list[nn.Module] = [
        SemanticStage(spec, trainable=trainable)
        if stage == REDUCED_STAGE
        else ordinary_stage(spec, stage, layer_scale=spec.layer_scale, trainable=trainable)
        for stage in range(len(spec.depths))
    ]
    return SwinClassifier(spec, stages, trainable=trainable)


class StvitTrunk(FixedNetwork):
    """Stem, stages and merges for any size: (B, 3, H, W) normalised pixels -> what leaves each stage."""

    spec: AnySizeShape

    def __init__(self, spec: AnySizeShape, *, trainable: bool) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem_from_shape(spec, trainable=trainable)
        stages = range(len(spec.depths))
        self.stages = nn.ModuleList(
            AnySizeSemanticStage(spec, trainable=trainable)
            if stage == REDUCED_STAGE
            else SwinStage(spec, stage, window=spec.window, shifted=True, trainable=trainable)
            for stage in stages
        )
        self.merges = nn.ModuleList(
            PatchMerging(spec.stage_width(stage), spec.stage_grid(stage), spec.norm_eps) for stage in stages[:-1]
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, C), padded right and bottom to whole patches."""
        return self.stem(padded(pixels, self.spec.patch)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def run(self, tokens: Tensor) -> list[Tensor]:
        """(..., n, C) of the first grid -> what leaves each stage, (..., n_i, C_i), before it is merged."""
        left = []
        for number, stage in enumerate(self.stages):
            tokens = stage(self.merges[number - 1](tokens) if number else tokens)
            left.append(tokens)
        return left

    def decode(self, tokens: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tuple(self.run(tokens))


class StvitBackbone(StvitTrunk):
    """(B, 3, H, W) normalised pixels -> a feature map a stage, (B, C_i, h_i, w_i), each normed on its own."""

    spec: StvitBackboneSpec

    def __init__(self, spec: StvitBackboneSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, trainable=trainable)
        self.norms = nn.ModuleList(
            nn.LayerNorm(spec.stage_width(stage), eps=spec.norm_eps) for stage in range(len(spec.depths))
        )

    def decode(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(n, C) or (B, n, C) tokens of the first grid -> the feature maps, B = 1 for (n, C)."""
        left = self.run(tokens)
        return tuple(
            norm(x).transpose(-2, -1).reshape(-1, x.shape[-1], *self.spec.stage_grid(stage))
            for stage, (norm, x) in enumerate(zip(self.norms, left, strict=True))
        )


class StvitSegmenter(StvitTrunk):
    """(B, 3, H, W) normalised pixels -> logits (B, K, h', w') of the restored tokens of the last stage."""

    spec: StvitSegmenterSpec

    def __init__(self, spec: StvitSegmenterSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, trainable=trainable)
        width = spec.stage_width(REDUCED_STAGE)
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.head = decode_head_from_spec(spec.head, width, spec.classes, trainable=trainable)

    def decode(self, tokens: Tensor) -> Tensor:
        """(n, C) or (B, n, C) tokens of the first grid -> logits."""
        return self.head(self.norm(self.run(tokens)[-1]), self.spec.head_grid)  # type: ignore[no-any-return]


class StvitDeit(FixedNetwork):
    """(B, 3, H, W) normalised pixels -> logits (B, K).

    Pooled patches look at all patches; what they become, plus learned tokens, looks at itself and all patches; from
    there on, only these few tokens run. The head sees their mean.
    """

    spec: StvitDeitSpec

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


def state_at_size(state: State, spec: StvitDeitSpec, target: StvitDeitSpec) -> State:
    """Position embeddings resized as DeiT's are (bicubic), the rest as it is."""
    if spec.grid == target.grid:
        return state
    positions = interpolated_positions(state["positions"], 0, spec.grid, target.grid, "bicubic")
    return {**state, "positions": positions}


STVIT_SWIN = Family(build=stvit_swin_from_spec)
STVIT_BACKBONE = Family(build=StvitBackbone)
STVIT_SEGMENTER = Family(build=StvitSegmenter)
STVIT_DEIT = Family(build=StvitDeit, resized=state_at_size)
