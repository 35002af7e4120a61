"""STViT-R for classification: a Swin whose third stage works on semantic tokens. Source: changsn/STViT-R."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import PATCH_SPAN, PATCH_STEP, REDUCED_STAGE, SAMPLES, UNIT, StvitSwinSpec
from dovit_deploy.models.family import Family
from dovit_deploy.models.semantic_blocks import CrossAttention, CrossBlock, raster_order, semantic_pooling
from dovit_deploy.models.static_stage import no_dense, static_stages
from dovit_deploy.models.swin import SwinBlock, block_shape
from dovit_deploy.models.swin_classifier import SwinClassifier, ordinary_stage
from dovit_deploy.models.weights_at_size import unchanged_weights
from dovit_deploy.models.window_attention import BlockShape, PlacedAttention, Placement, window_placement
from dovit_deploy.models.windows import Rows, Table, neighbourhood_table, whole_windows


class SemanticUnit(nn.Module):
    """Six blocks: image tokens (..., n, C) make semantic ones, which look at them, at each other, and are looked at.

    The semantic tokens are then forgotten; the next unit makes its own.
    """

    def __init__(self, spec: StvitSwinSpec, shape: BlockShape) -> None:
        super().__init__()
        grid = spec.stage_grid(REDUCED_STAGE)
        sides = (SAMPLES, spec.semantic_grid[0]) if spec.relative_positions else (0, 0)
        self.entry = SwinBlock(shape, spec.window, window_placement(grid, spec.window))
        self.pool = semantic_pooling(grid, spec.window, convolved=shape.width if spec.local_convolution else 0)
        self.seen = Rows(seen_while_pooling(spec), spec.semantic_tokens + spec.stage_tokens(REDUCED_STAGE))
        # Keys are gathered before they are normed and projected, as published: tokens of two patches count twice.
        windowed = PlacedAttention(shape, Placement(spec.semantic_tokens // SAMPLES**2))
        self.pooling = CrossBlock(shape, windowed, residual=spec.pooled_residual)
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.exchange = CrossBlock(shape, CrossAttention(shape))
        local = PlacedAttention(shape, window_placement(spec.semantic_grid, SAMPLES), relative=sides[0])
        self.local = CrossBlock(shape, local)
        everywhere = PlacedAttention(shape, Placement(1), relative=sides[1]) if sides[1] else CrossAttention(shape)
        self.everywhere = CrossBlock(shape, everywhere)
        self.recovery = CrossBlock(shape, CrossAttention(shape))

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        x = self.entry(x)
        pooled = self.pool(x)
        semantic = self.raster(self.pooling(pooled, self.seen(torch.cat([pooled, x], -2))))
        queries = semantic if guide is None else semantic + guide
        semantic = self.exchange(queries, torch.cat([semantic, x], -2))
        semantic = self.everywhere(self.local(semantic))
        return self.recovery(x, semantic)  # type: ignore[no-any-return]


def seen_while_pooling(spec: StvitSwinSpec) -> Table:
    """(windows, 9 + 100): what the semantic tokens of each window look at: themselves, and a patch of image tokens.

    Numbers of the semantic tokens, window after window, and behind them those of the image tokens.
    """
    grid = spec.stage_grid(REDUCED_STAGE)
    patches = neighbourhood_table(grid, whole_windows(grid, spec.window), step=PATCH_STEP, span=PATCH_SPAN)
    own = np.arange(spec.semantic_tokens).reshape(-1, SAMPLES**2)
    return np.concatenate([own, patches + spec.semantic_tokens], axis=1)


class SemanticStage(nn.Module):
    """Units one after another: (..., n, C) -> (..., n, C)."""

    def __init__(self, spec: StvitSwinSpec, *, trainable: bool) -> None:
        super().__init__()
        shape = block_shape(spec, REDUCED_STAGE, trainable=trainable)
        self.units = nn.ModuleList(SemanticUnit(spec, shape) for _ in range(spec.depths[REDUCED_STAGE] // UNIT))
        self.global_tokens = (
            nn.Parameter(torch.zeros(spec.semantic_tokens, spec.stage_width(REDUCED_STAGE)))
            if spec.global_tokens
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, unit in enumerate(self.units):
            # The source adds them in the first unit only.
            x = unit(x, self.global_tokens if number == 0 else None)
        return x


def stvit_swin_from_spec(spec: StvitSwinSpec, *, trainable: bool = False) -> SwinClassifier:
    """The network: ordinary stages but for the third."""
    stages: list[nn.Module] = [
        SemanticStage(spec, trainable=trainable)
        if stage == REDUCED_STAGE
        else ordinary_stage(spec, stage, layer_scale=spec.layer_scale, trainable=trainable)
        for stage in range(len(spec.depths))
    ]
    return SwinClassifier(spec, stages, trainable=trainable)


STVIT_SWIN = Family(
    spec=StvitSwinSpec,
    build=stvit_swin_from_spec,
    stages=static_stages,
    dense=no_dense,
    state_at_size=unchanged_weights(stvit_swin_from_spec),
)
