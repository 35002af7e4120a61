"""STViT-R for any picture size: what its backbone and its segmenter have in common.

Source: changsn/STViT-R-Object-Detection (mmdet). It differs from the classifier in more than its padding: semantic
tokens look twice at growing neighbourhoods, and image tokens at the semantic ones around them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.heads import decode_head_from_spec
from dovit_deploy.families.layers import padded
from dovit_deploy.families.registry import Family, State, unchanged_weights
from dovit_deploy.families.stages import no_dense, static_stages
from dovit_deploy.families.stvit.attention import BlockShape, PlacedAttention, Placement, window_placement
from dovit_deploy.families.stvit.neighbourhoods import AnySize, pooling_placement, recovery_placement
from dovit_deploy.families.stvit.semantic_blocks import (
    CrossAttention,
    CrossBlock,
    WindowPooling,
    raster_order,
    semantic_pooling,
)
from dovit_deploy.families.stvit.spec import (
    MADE_BY,
    PATCH_SPAN,
    PATCH_STEP,
    REDUCED_STAGE,
    SAMPLES,
    UNIT,
    StvitBackboneSpec,
    StvitDeitSpec,
    StvitSegmenterSpec,
    StvitSwinSpec,
)
from dovit_deploy.families.stvit.swin import (
    PatchMerging,
    SwinBlock,
    SwinClassifier,
    SwinStage,
    block_shape,
    ordinary_stage,
    stem_from_shape,
)
from dovit_deploy.families.stvit.windows import (
    Rows,
    Table,
    neighbourhood_table,
    pooling_table,
    whole_windows,
    with_empty,
)


class UnitPlacements:
    """Where the tokens of a unit's blocks lie; the units of a stage share one."""

    def __init__(self, spec: AnySize) -> None:
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = window_placement(grid, spec.window)
        self.pooling = pooling_placement(spec, spec.neighbourhoods[0])
        self.exchange = pooling_placement(spec, spec.neighbourhoods[1])
        self.local = window_placement(spec.semantic_grid, SAMPLES)
        self.recovery = recovery_placement(spec)


class WideSemanticUnit(nn.Module):
    """Six blocks: image tokens (..., n, C) make semantic ones, which look at them, at each other, and are looked at."""

    def __init__(self, spec: AnySize, shape: BlockShape, places: UnitPlacements) -> None:
        super().__init__()
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = SwinBlock(shape, spec.window, places.entry)
        self.pool = semantic_pooling(grid, spec.window, convolved=shape.width if spec.local_convolution else 0)
        self.pooling = CrossBlock(shape, PlacedAttention(shape, places.pooling))
        self.exchange = CrossBlock(shape, PlacedAttention(shape, places.exchange))
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.local = CrossBlock(shape, PlacedAttention(shape, places.local))
        self.everywhere = CrossBlock(shape, CrossAttention(shape))
        self.recovery = CrossBlock(shape, PlacedAttention(shape, places.recovery))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        # The source pads before the norm, so that what lies outside is a key of its own.
        filled = with_empty(x)
        semantic = self.exchange(self.pooling(self.pool(x), filled), filled)
        semantic = self.everywhere(self.local(self.raster(semantic)))
        return self.recovery(x, with_empty(semantic))  # type: ignore[no-any-return]


class WideSemanticStage(nn.Module):
    """Units one after another: (..., n, C) -> (..., n, C)."""

    def __init__(self, spec: AnySize, *, trainable: bool) -> None:
        super().__init__()
        places, shape = UnitPlacements(spec), block_shape(spec, REDUCED_STAGE, trainable=trainable)
        self.units = nn.ModuleList(
            WideSemanticUnit(spec, shape, places) for _ in range(spec.depths[REDUCED_STAGE] // UNIT)
        )

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return x


class StvitTrunk(nn.Module):
    """Stem, stages and merges for any size; `forward` gives what every stage makes, before it is merged."""

    def __init__(self, spec: AnySize, *, trainable: bool) -> None:
        super().__init__()
        self.stem = stem_from_shape(spec, trainable=trainable)
        stages = range(len(spec.depths))
        self.stages = nn.ModuleList(
            WideSemanticStage(spec, trainable=trainable)
            if stage == REDUCED_STAGE
            else SwinStage(spec, stage, window=spec.window, shifted=True, trainable=trainable)
            for stage in stages
        )
        self.merges = nn.ModuleList(
            PatchMerging(spec.stage_width(stage), spec.stage_grid(stage), spec.norm_eps) for stage in stages[:-1]
        )
        self.patch = spec.patch

    def forward(self, pixels: Tensor) -> object:
        """(B, 3, H, W) -> what leaves each stage; networks on the trunk answer with what they make of it."""
        return self.walk(self.embed(pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, C), padded right and bottom to whole patches."""
        return self.stem(padded(pixels, self.patch)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def walk(self, tokens: Tensor) -> list[Tensor]:
        """(..., n, C) of the first grid -> what leaves each stage, (..., n_i, C_i)."""
        left = []
        for number, stage in enumerate(self.stages):
            tokens = stage(self.merges[number - 1](tokens) if number else tokens)
            left.append(tokens)
        return left


# STViT-R for classification: a Swin whose third stage works on semantic tokens. Source: changsn/STViT-R.


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


# Segmentation with STViT-R: a decode head on the recovered tokens of its third stage. No official code has one.


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


# STViT-R's backbone for detection and dense prediction. Source: changsn/STViT-R-Object-Detection (mmdet).


class StvitBackbone(StvitTrunk):
    """(B, 3, H, W) normalised pixels -> a feature map a stage, (B, C_i, h_i, w_i), each normed on its own."""

    def __init__(self, spec: StvitBackboneSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, trainable=trainable)
        self.spec = spec
        self.norms = nn.ModuleList(
            nn.LayerNorm(spec.stage_width(stage), eps=spec.norm_eps) for stage in range(len(spec.depths))
        )

    def decode(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(n, C) or (B, n, C) tokens of the first grid -> the feature maps, B = 1 for (n, C)."""
        left = self.walk(tokens)
        return tuple(
            norm(x).transpose(-2, -1).reshape(-1, x.shape[-1], *self.spec.stage_grid(stage))
            for stage, (norm, x) in enumerate(zip(self.norms, left, strict=True))
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.decode(self.embed(pixels))


STVIT_BACKBONE = Family(
    spec=StvitBackboneSpec,
    build=StvitBackbone,
    stages=static_stages,
    dense=no_dense,
    state_at_size=unchanged_weights(StvitBackbone),
)


# STViT on DeiT, composed after the text of the paper of STViT-R's blocks. Not verified: no official code exists.


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


STVIT_DEIT = Family(
    spec=StvitDeitSpec, build=StvitDeit, stages=static_stages, dense=no_dense, state_at_size=state_at_size
)
