"""Swin as data: the widths, depths and windows that every Swin-like architecture shares, and the grids they make.

`SwinSpec` is the plain Swin of microsoft/Swin-Transformer, the dense baseline of STViT-R.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.bounds import Channels, ClassCount, Epsilon, Heads, Layers
from dovit_deploy.families.spec import FixedCountSpec, Grid, Size

PATCH = 4
"""PixelSide of a side of a token of the first grid; each stage halves the grid once more."""


class SwinShape(FixedCountSpec):
    """Stages of window attention, each twice as wide as the one before on a grid half as fine."""

    size: Size
    """Height and width of `pixels`, in pixels."""
    stem: Literal["conv", "patch"] = "conv"
    """`conv`: two 3x3 convolutions of stride 2 with batch norm and Hardswish; `patch`: one of 4x4, then LayerNorm."""
    width: Channels = Field(multiple_of=2)
    """Of the first stage."""
    depths: tuple[Layers, ...] = Field(min_length=3, max_length=4)
    """Blocks of each stage."""
    heads: tuple[Heads, ...] = Field(min_length=3, max_length=4)
    window: int = Field(default=7, ge=2, le=1_024)
    """Side of a window, in tokens."""
    hidden_ratio: float = Field(default=4.0, gt=0, le=64)
    """Width of an MLP's inner layer over that of its stage."""
    norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _consistent(self) -> SwinShape:
        if len(self.depths) != len(self.heads) or min(self.depths) < 1 or min(self.heads) < 1:
            raise ValueError(f"depths {self.depths} and heads {self.heads} must be as many, and each at least 1")
        for stage, heads in enumerate(self.heads):
            if self.stage_width(stage) % heads:
                raise ValueError(f"stage {stage}: width {self.stage_width(stage)} is not divisible by {heads} heads")
        return self

    def stage_width(self, stage: int) -> int:
        """C, the width of a token of a stage."""
        return int(self.width * 2**stage)

    def stage_hidden(self, stage: int) -> int:
        """Inner width of the MLPs of a stage."""
        return int(self.stage_width(stage) * self.hidden_ratio)

    def stage_grid(self, stage: int) -> Grid:
        """Rows and columns of a stage; odd sides are padded before they are halved."""
        side = PATCH * 2**stage
        return math.ceil(self.size[0] / side), math.ceil(self.size[1] / side)

    def stage_tokens(self, stage: int) -> int:
        """Rows times columns of a stage."""
        rows, columns = self.stage_grid(stage)
        return rows * columns

    def stage_window(self, stage: int) -> int:
        """Side of the windows of a stage, in tokens: a coarser grid is one window."""
        return min(self.window, *self.stage_grid(stage))

    def stage_windows(self, stage: int) -> int:
        """How many windows cover the grid of a stage."""
        rows, columns = self.stage_grid(stage)
        window = self.stage_window(stage)
        return math.ceil(rows / window) * math.ceil(columns / window)

    @property
    def shape_text(self) -> str:
        """Widths, depths and heads in a few words, for people."""
        depths, heads = ("-".join(str(number) for number in numbers) for numbers in (self.depths, self.heads))
        return f"width {self.width}, {depths} blocks, {heads} heads, windows of {self.window}, {self.stem} stem"

    @property
    def patch(self) -> int:
        return PATCH

    @property
    def extra_tokens(self) -> Literal[0]:
        return 0


class SwinSpec(SwinShape):
    """Classification at sizes whose grids are made of whole windows."""

    architecture: Literal["swin"] = "swin"
    family: Literal["swin"] = "swin"
    stem: Literal["conv", "patch"] = "patch"
    classes: ClassCount

    @model_validator(mode="after")
    def _whole_windows(self) -> SwinSpec:
        # Every merge needs even sides, and nothing is padded.
        step = PATCH * 2 ** (len(self.depths) - 1)
        grids = [self.stage_grid(stage) for stage in range(len(self.depths))]
        whole = all(side % self.stage_window(stage) == 0 for stage, grid in enumerate(grids) for side in grid)
        if any(side % step for side in self.size) or not whole:
            unit = step * self.window
            raise ValueError(
                f"Swin with windows of {self.window} takes multiples of {unit}, not {self.size[0]}x{self.size[1]}"
            )
        return self

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        return (("backbone", self.shape_text),)
