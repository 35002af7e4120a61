"""STViT-R for classification: a Swin whose third stage works on semantic tokens. Source: changsn/STViT-R."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.bundle.stvit_spec import PATCH_SPAN, PATCH_STEP, REDUCED_STAGE, SAMPLES, UNIT, StvitSwinSpec
from dovit_deploy.models.semantic_blocks import CrossAttention, CrossBlock, raster_order, semantic_pooling
from dovit_deploy.models.swin import SwinBlock
from dovit_deploy.models.swin_classifier import SwinClassifier, ordinary_stage
from dovit_deploy.models.window_attention import PlacedAttention, Placement, window_placement
from dovit_deploy.models.windows import Rows, Table, neighbourhood_table, whole_windows


class SemanticUnit(nn.Module):
    """Six blocks: image tokens (..., n, C) make semantic ones, which look at them, at each other, and are looked at.

    The semantic tokens are then forgotten; the next unit makes its own.
    """

    def __init__(self, spec: StvitSwinSpec) -> None:
        super().__init__()
        stage, grid = REDUCED_STAGE, spec.stage_grid(REDUCED_STAGE)
        width, hidden, heads, eps = spec.stage_width(stage), spec.stage_hidden(stage), spec.heads[stage], spec.norm_eps
        windows = spec.semantic_tokens // SAMPLES**2

        def block(attention: nn.Module, *, residual: bool = True) -> CrossBlock:
            return CrossBlock(width, hidden, eps, attention, residual=residual)

        self.entry = SwinBlock(
            width,
            heads,
            hidden,
            eps,
            window=spec.window,
            placement=window_placement(grid, spec.window),
            layer_scale=False,
        )
        self.pool = semantic_pooling(grid, spec.window, convolved=width if spec.local_convolution else 0)
        table = seen_while_pooling(spec)
        self.seen = Rows(table, spec.semantic_tokens + spec.stage_tokens(stage))
        # Keys are gathered before they are normed and projected, as published: tokens of two patches count twice.
        self.pooling = block(PlacedAttention(width, heads, Placement(windows)), residual=spec.pooled_residual)
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.exchange = block(CrossAttention(width, heads))
        relative = spec.relative_positions
        local = window_placement(spec.semantic_grid, SAMPLES)
        self.local = block(PlacedAttention(width, heads, local, relative=SAMPLES if relative else 0))
        everywhere = spec.semantic_grid[0]
        self.everywhere = block(
            PlacedAttention(width, heads, Placement(1), relative=everywhere)
            if relative
            else CrossAttention(width, heads)
        )
        self.recovery = block(CrossAttention(width, heads))

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

    def __init__(self, spec: StvitSwinSpec) -> None:
        super().__init__()
        self.units = nn.ModuleList(SemanticUnit(spec) for _ in range(spec.depths[REDUCED_STAGE] // UNIT))
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
        SemanticStage(spec) if stage == REDUCED_STAGE else ordinary_stage(spec, stage, layer_scale=spec.layer_scale)
        for stage in range(len(spec.depths))
    ]
    return SwinClassifier(spec, stages, trainable=trainable)
