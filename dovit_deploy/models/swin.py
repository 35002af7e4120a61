"""Swin's parts: stems, blocks, stages and patch merging, on tokens (..., n, C) of a grid known beforehand."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.bundle.swin_shape import PATCH, SwinShape
from dovit_deploy.models.batch_norm import conv_norm
from dovit_deploy.models.layers import Mlp
from dovit_deploy.models.window_attention import BlockShape, PlacedAttention, Placement, window_placement
from dovit_deploy.models.windows import Grid, Rows, merging_table, with_empty

LAYER_SCALE = 1e-5
"""What a layer scale starts as."""


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with batch norm and Hardswish: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, width: int, *, trainable: bool) -> None:
        super().__init__()
        self.first = conv_norm(3, width // 2, 3, stride=2, trainable=trainable)
        self.second = conv_norm(width // 2, width, 3, stride=2, trainable=trainable)

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.hardswish(self.second(functional.hardswish(self.first(pixels))))


class PatchStem(nn.Module):
    """One 4x4 convolution of stride 4, then LayerNorm over the channels: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.projection(pixels).movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def stem_from_shape(shape: SwinShape, *, trainable: bool) -> nn.Module:
    """The stem that `shape` asks for."""
    if shape.stem == "conv":
        return ConvStem(shape.width, trainable=trainable)
    return PatchStem(shape.width, shape.norm_eps)


class LayerScale(nn.Module):
    """One factor for each channel; in deployment form it is folded into the layer before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def scale_from(shape: BlockShape, *, present: bool = True) -> nn.Module:
    """A `LayerScale` where there is one and it was not folded, else nothing."""
    return LayerScale(shape.width) if present and shape.trainable else nn.Identity()


def block_shape(shape: SwinShape, stage: int, *, trainable: bool) -> BlockShape:
    """Of the blocks of a stage."""
    width, hidden = shape.stage_width(stage), shape.stage_hidden(stage)
    return BlockShape(width, shape.heads[stage], hidden, shape.norm_eps, trainable)


class SwinBlock(nn.Module):
    """Pre-norm block with attention in windows of side `window`: (..., n, C) -> (..., n, C).

    Outside the grid lie zeros that were not normed.
    """

    def __init__(self, shape: BlockShape, window: int, placement: Placement, *, layer_scale: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = PlacedAttention(shape, placement, relative=window)
        self.scale1 = scale_from(shape, present=layer_scale)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.scale2 = scale_from(shape, present=layer_scale)
        self.outside = placement.keys is not None and placement.keys.outside

    def forward(self, x: Tensor) -> Tensor:
        # The source pads after the norm, so that what lies outside is projected to the bias.
        filled = with_empty(self.norm1(x), needed=self.outside)
        x = x + self.scale1(self.attention(filled, filled))
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Four neighbours become one token, twice as wide: (..., n, C) -> (..., n / 4, 2C); odd sides are padded."""

    def __init__(self, width: int, grid: Grid, norm_eps: float) -> None:
        super().__init__()
        self.rows = Rows(merging_table(grid), grid[0] * grid[1])
        self.norm = nn.LayerNorm(4 * width, eps=norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        four = self.rows(with_empty(x, needed=self.rows.outside))
        joined = four.reshape(*four.shape[:-2], four.shape[-2] // 4, 4 * four.shape[-1])
        return self.reduction(self.norm(joined))  # type: ignore[no-any-return]


class SwinStage(nn.Module):
    """Blocks on one grid, every second one with shifted windows: (..., n, C) -> (..., n, C).

    Args:
        shape: the architecture.
        stage: which stage of it.
        window: side of its windows.
        shifted: a grid of one window is not shifted, when classifying.
        layer_scale: blocks scale what they add.
        trainable: in training form.
    """

    def __init__(
        self, shape: SwinShape, stage: int, *, window: int, shifted: bool, layer_scale: bool = False, trainable: bool
    ) -> None:
        super().__init__()
        grid, blocks = shape.stage_grid(stage), block_shape(shape, stage, trainable=trainable)
        straight = window_placement(grid, window)
        rolled = window_placement(grid, window, window // 2) if shifted else straight
        self.blocks = nn.ModuleList(
            SwinBlock(blocks, window, rolled if number % 2 else straight, layer_scale=layer_scale)
            for number in range(shape.depths[stage])
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x
