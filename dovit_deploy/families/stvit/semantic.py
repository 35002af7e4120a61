"""Semantic tokens: image tokens are pooled to a few, those look at the image and at each other, and the image at them.

A unit of six blocks does this once, on tokens (..., n, C); a stage is several units. The classifier's unit
(changsn/STViT-R) and the one for any size (changsn/STViT-R-Object-Detection, mmdet) differ in more than padding: in the
second, semantic tokens look twice at growing neighbourhoods, and image tokens only at the semantic ones around them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from dovit_deploy.families.layers import AttentionProjections, Mlp, attention
from dovit_deploy.families.spec import Grid
from dovit_deploy.families.stvit.attention import (
    BlockShape,
    PaddingMask,
    WindowAttention,
    WindowLayout,
    window_layout,
)
from dovit_deploy.families.stvit.spec import (
    PATCH_SPAN,
    PATCH_STEP,
    REDUCED_STAGE,
    SAMPLES,
    UNIT,
    AnySizeShape,
    StvitSwinSpec,
)
from dovit_deploy.families.stvit.swin import SwinBlock, block_shape, scale_from
from dovit_deploy.families.stvit.windows import (
    GatherRows,
    Table,
    neighbourhood_table,
    pooling_table,
    return_table,
    whole_windows,
    window_table,
    with_empty,
)


class SemanticUnit(nn.Module):
    """Six blocks: image tokens (..., n, C) make semantic ones, which look at them, at each other, and are looked at.

    The semantic tokens are then forgotten; the next unit makes its own.
    """

    def __init__(self, spec: StvitSwinSpec, shape: BlockShape) -> None:
        super().__init__()
        grid = spec.stage_grid(REDUCED_STAGE)
        # Sides of the grids whose attention has biases: one window's semantic tokens, and all of them.
        sides = (SAMPLES, spec.semantic_grid[0]) if spec.relative_positions else (0, 0)
        self.entry = SwinBlock(shape, spec.window, window_layout(grid, spec.window))
        self.pool = semantic_pooling(grid, spec.window, convolved=shape.width if spec.local_convolution else 0)
        self.seen = GatherRows(seen_while_pooling(spec), spec.semantic_tokens + spec.stage_tokens(REDUCED_STAGE))
        # Keys are gathered before they are normed and projected, as published: tokens of two patches count twice.
        windowed = WindowAttention(shape, WindowLayout(spec.semantic_tokens // SAMPLES**2))
        self.pooling = CrossBlock(shape, windowed, residual=spec.pooled_residual)
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.exchange = CrossBlock(shape, CrossAttention(shape))
        local = WindowAttention(shape, window_layout(spec.semantic_grid, SAMPLES), relative=sides[0])
        self.local = CrossBlock(shape, local)
        everywhere = WindowAttention(shape, WindowLayout(1), relative=sides[1]) if sides[1] else CrossAttention(shape)
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
    # Semantic tokens come first in what is gathered from, image tokens behind them.
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


class AnySizeSemanticUnit(nn.Module):
    """`SemanticUnit` for a grid of any size, padded to whole windows."""

    def __init__(self, spec: AnySizeShape, shape: BlockShape, layouts: UnitLayouts) -> None:
        super().__init__()
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = SwinBlock(shape, spec.window, layouts.entry)
        self.pool = semantic_pooling(grid, spec.window, convolved=shape.width if spec.local_convolution else 0)
        self.pooling = CrossBlock(shape, WindowAttention(shape, layouts.pooling))
        self.exchange = CrossBlock(shape, WindowAttention(shape, layouts.exchange))
        self.raster = raster_order(spec.semantic_grid, SAMPLES)
        self.local = CrossBlock(shape, WindowAttention(shape, layouts.local))
        self.everywhere = CrossBlock(shape, CrossAttention(shape))
        self.recovery = CrossBlock(shape, WindowAttention(shape, layouts.recovery))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        # The source pads before the norm, so that what is outside is a key of its own.
        filled = with_empty(x)
        semantic = self.exchange(self.pooling(self.pool(x), filled), filled)
        semantic = self.everywhere(self.local(self.raster(semantic)))
        return self.recovery(x, with_empty(semantic))  # type: ignore[no-any-return]


class AnySizeSemanticStage(nn.Module):
    """Units one after another: (..., n, C) -> (..., n, C)."""

    def __init__(self, spec: AnySizeShape, *, trainable: bool) -> None:
        super().__init__()
        layouts, shape = UnitLayouts(spec), block_shape(spec, REDUCED_STAGE, trainable=trainable)
        self.units = nn.ModuleList(
            AnySizeSemanticUnit(spec, shape, layouts) for _ in range(spec.depths[REDUCED_STAGE] // UNIT)
        )

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return x


class UnitLayouts:
    """Which tokens each attention of a unit sees; the units of a stage share one."""

    def __init__(self, spec: AnySizeShape) -> None:
        grid = spec.stage_grid(REDUCED_STAGE)
        self.entry = window_layout(grid, spec.window)
        self.pooling = pooling_layout(spec, spec.neighbourhoods[0])
        self.exchange = pooling_layout(spec, spec.neighbourhoods[1])
        self.local = window_layout(spec.semantic_grid, SAMPLES)
        self.recovery = recovery_layout(spec)


class CrossAttention(AttentionProjections):
    """Every query (..., n, C) over every key (..., m, C)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape.width, shape.heads)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed = attention(self.query(x), self.key(y), self.value(y), self.heads)
        return self.output(mixed)  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Pre-norm block whose queries look at other tokens: x += scale1 * attention(x, y); x += scale2 * mlp(x).

    Args:
        shape: of the block; queries and keys share the first norm.
        attention: called with normed queries and normed keys.
        residual: False: what attention gives replaces x instead of being added to it.
    """

    def __init__(self, shape: BlockShape, attention: nn.Module, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = attention
        self.scale1 = scale_from(shape)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.scale2 = scale_from(shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        # Without other tokens it is an ordinary block, whose norm is computed once.
        queries = self.norm1(x)
        mixed = self.scale1(self.attention(queries, queries if y is None else self.norm1(y)))
        x = x + mixed if self.residual else mixed
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class WindowPooling(nn.Module):
    """The largest value in each bin of each window: (..., n, C) -> (..., windows * samples^2, C), window by window.

    Where windows reach outside the grid, zeros take part.

    Args:
        windows: (windows, window^2), the tokens of each; `windows.window_table`.
        count: how many tokens there are.
        bins: (samples^2, largest), the positions in a window that each bin looks at; `windows.pooling_table`.
        convolved: width of a depthwise 3x3 convolution that is added inside each window; 0 for none.
    """

    def __init__(self, windows: Table, count: int, bins: Table, *, convolved: int = 0) -> None:
        super().__init__()
        self.side, self.largest = math.isqrt(len(bins)), bins.shape[1]
        self.rows = GatherRows(windows[:, bins], count)
        self.convolution = nn.Conv2d(convolved, convolved, 3, padding=1, groups=convolved) if convolved else None

    def forward(self, x: Tensor) -> Tensor:
        binned = self.rows(with_empty(x, needed=self.rows.outside))
        shape = (*binned.shape[:-2], binned.shape[-2] // self.largest, self.largest, binned.shape[-1])
        pooled: Tensor = binned.reshape(shape).amax(-2)
        if self.convolution is None:
            return pooled
        # Inside each window alone: to the convolution a window is an image of a batch.
        image: Tensor = pooled.reshape(-1, self.side, self.side, pooled.shape[-1]).permute(0, 3, 1, 2)
        image = image + self.convolution(image)
        return image.permute(0, 2, 3, 1).reshape(pooled.shape)


def semantic_pooling(grid: Grid, window: int, *, convolved: int) -> WindowPooling:
    """STViT-R's: three by three from each window."""
    bins = pooling_table((window, window), SAMPLES)
    return WindowPooling(window_table(grid, window), grid[0] * grid[1], bins, convolved=convolved)


def raster_order(grid: Grid, window: int) -> GatherRows:
    """From window after window to the raster order of `grid`, which is made of whole windows."""
    count = grid[0] * grid[1]
    return GatherRows(return_table(window_table(grid, window), count), count)


def pooling_layout(spec: AnySizeShape, span: int) -> WindowLayout:
    """Semantic tokens, window after window, over the squares of image tokens around their windows."""
    grid = spec.stage_grid(REDUCED_STAGE)
    windows = whole_windows(grid, spec.window)
    before = (span - spec.window) // 2
    table = neighbourhood_table(grid, windows, step=spec.window, span=span, before=before)
    whole = windows[0] * spec.window, windows[1] * spec.window
    cut = neighbourhood_table(whole, windows, step=spec.window, span=span, before=before)
    mask = padding_mask(spec, table == grid[0] * grid[1], cut, whole)
    return WindowLayout(len(table), keys=GatherRows(table, grid[0] * grid[1]), mask=mask)


def recovery_layout(spec: AnySizeShape) -> WindowLayout:
    """Image tokens, in windows, over the squares of semantic tokens around their windows."""
    grid, semantic = spec.stage_grid(REDUCED_STAGE), spec.semantic_grid
    count, span = grid[0] * grid[1], spec.recovery_neighbourhood
    queries = window_table(grid, spec.window)
    # Where the rest is odd, the source reaches one token further below and on the right.
    before = (span - SAMPLES) // 2
    table = neighbourhood_table(semantic, whole_windows(grid, spec.window), step=SAMPLES, span=span, before=before)
    mask = padding_mask(spec, table == spec.semantic_tokens, table, semantic)
    return WindowLayout(
        len(table),
        # What is asked outside the grid is never read; any token serves.
        queries=GatherRows(np.where(queries == count, 0, queries), count),
        keys=GatherRows(table, spec.semantic_tokens),
        join=GatherRows(return_table(queries, count), queries.size),
        mask=mask,
    )


def padding_mask(spec: AnySizeShape, outside: Table, cut: Table, whole: Grid) -> PaddingMask | None:
    """The mask that `spec.padding_mask` asks for; None where it would change nothing.

    Args:
        spec: the architecture.
        outside: (windows, span^2) bool, no token is there.
        cut: (windows, span^2), the same positions as numbers on the grid `whole`.
        whole: the grid that the source's mask is drawn on; what is beyond it is hidden.
    """
    if spec.padding_mask == "none":
        return None
    hidden = outside
    if spec.padding_mask == "released":
        rows, columns = spec.stage_grid(REDUCED_STAGE)
        corner = released_corner(whole, (-rows % spec.window, -columns % spec.window))
        # The number one past the last is what is beyond `whole`.
        hidden = np.append(corner.reshape(-1), True)[cut]
    # A softmax does not see a constant.
    return PaddingMask(hidden) if hidden.any() and not hidden.all() else None


def released_corner(grid: Grid, padding: Grid) -> Table:
    """(rows, columns) bool: what the released code hides of `grid`.

    It means the `padding` below and on the right, counted in image tokens whatever `grid` is of, but cuts it out with
    slices from the end. So two padded sides hide only their common corner, one padded side hides its strip, and with
    none padded, where a slice from -0 is everything, all is hidden.
    """
    corner: Table = np.zeros(grid, dtype=bool)
    corner[-padding[0] :, -padding[1] :] = True
    return corner
