"""Swin: stems, blocks of window attention, stages and patch merging, and the classifier that they make.

Everything is on tokens (..., n, C) of a grid known beforehand. STViT-R shares all of it but the third stage. Source:
microsoft/Swin-Transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.folding import conv_norm
from dovit_deploy.families.layers import Mlp
from dovit_deploy.families.registry import Family
from dovit_deploy.families.spec import Grid
from dovit_deploy.families.stages import FixedNetwork
from dovit_deploy.families.stvit.attention import BlockShape, WindowAttention, WindowLayout, window_layout
from dovit_deploy.families.stvit.spec import StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import PATCH, SwinShape, SwinSpec
from dovit_deploy.families.stvit.windows import GatherRows, merging_table, with_empty

LAYER_SCALE = 1e-5
"""What a layer scale starts as."""


class SwinConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with batch norm and Hardswish: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, width: int, *, trainable: bool) -> None:
        super().__init__()
        self.first = conv_norm(3, width // 2, 3, stride=2, trainable=trainable)
        self.second = conv_norm(width // 2, width, 3, stride=2, trainable=trainable)

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.hardswish(self.second(functional.hardswish(self.first(pixels))))


class SwinPatchStem(nn.Module):
    """One 4x4 convolution of stride 4, then LayerNorm over the channels: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        # LayerNorm is over the last axis, channels are the second.
        return self.norm(self.projection(pixels).movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def stem_from_shape(shape: SwinShape, *, trainable: bool) -> nn.Module:
    """The stem that `shape` asks for."""
    if shape.stem == "conv":
        return SwinConvStem(shape.width, trainable=trainable)
    return SwinPatchStem(shape.width, shape.norm_eps)


class LayerScale(nn.Module):
    """One factor for each channel; in deployment form it is folded into the layer before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def scale_from(shape: BlockShape, *, present: bool = True) -> nn.Module:
    """A `LayerScale` where there is one and it was not folded, else nothing."""
    # In deployment form it is folded into the layer before it.
    return LayerScale(shape.width) if present and shape.trainable else nn.Identity()


def block_shape(shape: SwinShape, stage: int, *, trainable: bool) -> BlockShape:
    """Of the blocks of a stage."""
    width, hidden = shape.stage_width(stage), shape.stage_hidden(stage)
    return BlockShape(width, shape.heads[stage], hidden, shape.norm_eps, trainable)


class SwinBlock(nn.Module):
    """Pre-norm block with attention in windows of side `window`: (..., n, C) -> (..., n, C)."""

    def __init__(self, shape: BlockShape, window: int, layout: WindowLayout, *, layer_scale: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = WindowAttention(shape, layout, relative=window)
        self.scale1 = scale_from(shape, present=layer_scale)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.scale2 = scale_from(shape, present=layer_scale)
        self.outside = layout.keys is not None and layout.keys.outside

    def forward(self, x: Tensor) -> Tensor:
        # The source pads after the norm, so that what is outside is projected to the bias.
        filled = with_empty(self.norm1(x), needed=self.outside)
        x = x + self.scale1(self.attention(filled, filled))
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Four neighbours become one token, twice as wide: (..., n, C) -> (..., n / 4, 2C); odd sides are padded."""

    def __init__(self, width: int, grid: Grid, norm_eps: float) -> None:
        super().__init__()
        self.rows = GatherRows(merging_table(grid), grid[0] * grid[1])
        self.norm = nn.LayerNorm(4 * width, eps=norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Gathered side by side, so that joining four is a reshape.
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
        straight = window_layout(grid, window)
        # Blocks of one kind share a layout: tables are computed and kept once a stage.
        rolled = window_layout(grid, window, window // 2) if shifted else straight
        self.blocks = nn.ModuleList(
            SwinBlock(blocks, window, rolled if number % 2 else straight, layer_scale=layer_scale)
            for number in range(shape.depths[stage])
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class SwinClassifier(FixedNetwork):
    """Stem, stages, the mean of the last tokens, one linear layer: (B, 3, H, W) normalised pixels -> logits (B, K).

    Args:
        spec: the architecture.
        stages: what runs on each grid, (..., n, C) -> (..., n, C).
        trainable: keep batch norms apart.
    """

    spec: SwinSpec | StvitSwinSpec

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


def ordinary_stage(
    spec: SwinSpec | StvitSwinSpec, stage: int, *, layer_scale: bool = False, trainable: bool
) -> SwinStage:
    """A stage of ordinary blocks; a grid of a single window is not shifted."""
    # A shift inside a single window would only hide tokens from each other.
    shifted = min(spec.stage_grid(stage)) > spec.window
    window = spec.stage_window(stage)
    return SwinStage(spec, stage, window=window, shifted=shifted, layer_scale=layer_scale, trainable=trainable)


def swin_from_spec(spec: SwinSpec, *, trainable: bool = False) -> SwinClassifier:
    """The plain network."""
    stages = [ordinary_stage(spec, stage, trainable=trainable) for stage in range(len(spec.depths))]
    return SwinClassifier(spec, stages, trainable=trainable)


FAMILY = Family(build=swin_from_spec)
