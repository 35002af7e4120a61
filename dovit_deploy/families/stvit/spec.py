"""STViT as data: a few semantic tokens stand for many image tokens, which they restore in the end.

STViT-R is Swin whose third stage works on semantic tokens. Sources: changsn/STViT-R (classification),
changsn/STViT-R-Object-Detection (backbone). The segmenter is this project's: the detection backbone without its last
stage under a segmentation head. STViT on DeiT follows the text of the paper: no official code of it was released.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dovit_deploy.bounds import Channels, ClassCount, Epsilon, GridSide, Heads, LayerNumber, Layers, PatchSide
from dovit_deploy.families.parts import Head, backbone_text, check_heads, head_text, logits_grid
from dovit_deploy.families.spec import FixedCountSpec, Grid, Size
from dovit_deploy.families.stvit.swin_spec import PATCH, SwinShape

REDUCED_STAGE = 2
"""The stage, counted from 0, whose tokens are reduced."""
UNIT = 6
"""Blocks that make and use semantic tokens once: two on all tokens, four on semantic ones."""
SAMPLES = 3
"""Semantic tokens per side of a window."""
PATCH_SPAN, PATCH_STEP = 10, 4
"""When classifying: side of the square of tokens that the semantic tokens of a window look at, and the step from one
square to the next."""
MADE_BY = 2
"""STViT on DeiT: blocks that turn patches into semantic tokens."""


class ReducedShape(SwinShape):
    """What the classifier, the backbone and the segmenter have in common."""

    STAGES: ClassVar[int] = 4

    family: Literal["stvit-r"] = "stvit-r"
    local_convolution: bool = False
    """A depthwise 3x3 convolution is added to pooled tokens (`use_conv_pos`)."""

    @model_validator(mode="after")
    def _whole_units(self) -> ReducedShape:
        if len(self.depths) != self.STAGES:
            raise ValueError(f"{len(self.depths)} stages given; {self.STAGES} are needed")
        depth = self.depths[REDUCED_STAGE]
        if depth % UNIT:
            raise ValueError(f"stage {REDUCED_STAGE} has {depth} blocks; STViT-R needs a multiple of {UNIT}")
        return self

    @property
    def semantic_grid(self) -> Grid:
        """Rows and columns of semantic tokens."""
        rows, columns = self.stage_grid(REDUCED_STAGE)
        return math.ceil(rows / self.window) * SAMPLES, math.ceil(columns / self.window) * SAMPLES

    @property
    def semantic_tokens(self) -> int:
        """How many semantic tokens there are."""
        return self.semantic_grid[0] * self.semantic_grid[1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each stage: image tokens of the ordinary ones, semantic tokens of the reduced one."""
        return tuple(
            self.semantic_tokens if stage == REDUCED_STAGE else self.stage_tokens(stage)
            for stage in range(len(self.depths))
        )

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        image = self.stage_tokens(REDUCED_STAGE)
        saved = f"{self.semantic_tokens} semantic tokens for {image} in stage {REDUCED_STAGE}"
        return ("backbone", self.shape_text), ("reduced", saved)

    @property
    def has_dense(self) -> bool:
        """A Swin of the same widths and depths has other weights."""
        return False


class StvitSwinSpec(ReducedShape):
    """Classification at one square size that windows and patches fit (`fitting_sides`)."""

    architecture: Literal["stvit-r-swin"] = "stvit-r-swin"
    classes: ClassCount
    pooled_residual: bool = False
    """Semantic tokens are what attention adds to the pooled tokens, instead of what it gives alone (`shortcut`)."""
    global_tokens: bool = False
    """Learned tokens are added to the semantic tokens of the first unit (`use_global`)."""
    relative_positions: bool = False
    """Attention among semantic tokens has biases by relative position (`relative_pos`)."""
    layer_scale: bool = False
    """Ordinary stages scale what a block adds (`use_layer_scale`); semantic blocks always do."""

    @model_validator(mode="after")
    def _fits(self) -> StvitSwinSpec:
        # The message lists what fits: with most windows it is a single size.
        if self.size[0] != self.size[1] or not fits(self.size[0], self.window):
            sides = ", ".join(f"{side}x{side}" for side in fitting_sides(self.window)) or "no size"
            raise ValueError(
                f"STViT-R with windows of {self.window} classifies {sides} only, not {self.size[0]}x{self.size[1]}"
            )
        return self


class AnySizeShape(ReducedShape):
    """What backbone and segmenter have in common: they take any size, and pad it to whole windows."""

    neighbourhoods: tuple[GridSide, GridSide] = (14, 21)
    """Sides of the squares of image tokens that semantic tokens look at, first and second (`k_window_size_1`, `_2`)."""
    recovery_neighbourhood: int = Field(default=27, ge=SAMPLES, le=1_024)
    """Side of the square of semantic tokens that image tokens look at (`restore_k_window_size`)."""
    padding_mask: Literal["released", "exact", "none"] = "released"
    """Which padding attention does not see. `released`: what the released weights were trained with (`pad_mask`), only
    the corner where both sides are padded and all of it where none is; `exact`: all; `none`: it sees all."""

    @model_validator(mode="after")
    def _reach(self) -> AnySizeShape:
        # A neighbourhood is grown around its window.
        if min(self.neighbourhoods) < self.window:
            raise ValueError(f"neighbourhoods {self.neighbourhoods} must not be smaller than the window {self.window}")
        return self

    def stage_window(self, stage: int) -> int:
        """Side of the windows of a stage: a grid that is not made of whole windows is padded."""
        del stage
        return self.window


class StvitBackboneSpec(AnySizeShape):
    """The backbone for detection and dense prediction: one normed feature map a stage."""

    architecture: Literal["stvit-r-backbone"] = "stvit-r-backbone"
    classes: Literal[0] = 0

    @property
    def task(self) -> Literal["features"]:
        return "features"

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        return {f"out{stage}": (1, self.stage_width(stage), *self.stage_grid(stage)) for stage in range(self.STAGES)}


class StvitSegmenterSpec(AnySizeShape):
    """Segmentation: the image tokens that the third stage restores, at stride 16, under a decode head.

    The fourth stage is left out: it would run on a grid of stride 32, has no semantic tokens, and would have to be
    up-sampled again. So the head sees the grid that a ViT's would.
    """

    STAGES: ClassVar[int] = REDUCED_STAGE + 1

    architecture: Literal["stvit-r-segmenter"] = "stvit-r-segmenter"
    padding_mask: Literal["released", "exact", "none"] = "exact"
    classes: ClassCount
    head: Head

    @property
    def task(self) -> Literal["segmentation"]:
        return "segmentation"

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        return *super().parts, ("decode head", head_text(self.head))

    @property
    def head_patch(self) -> int:
        """Side of a token that the head sees, in pixels."""
        return int(self.patch * 2**REDUCED_STAGE)

    @property
    def head_grid(self) -> Grid:
        """Rows and columns of the tokens that the head sees."""
        return self.stage_grid(REDUCED_STAGE)

    @property
    def logits_grid(self) -> Grid:
        return logits_grid(self.head, self.head_grid)


def fits(side: int, window: int) -> bool:
    """An image of `side` x `side` pixels passes all stages: whole windows everywhere, as many patches as windows.

    The published code takes 224 with windows of 7. Others pass by accident of its patches, as 256 with windows of 8,
    where the patches miss two rows and columns at the border.
    """
    # The classifier does not pad: every merge needs even sides, and every grid whole windows, or to be one.
    grids = [side // (PATCH * 2**stage) for stage in range(4)]
    reduced = grids[REDUCED_STAGE]
    return (
        side % (PATCH * 8) == 0
        and all(grid <= window or grid % window == 0 for grid in grids)
        and reduced % window == 0
        and reduced >= PATCH_SPAN
        and (reduced - PATCH_SPAN) // PATCH_STEP + 1 == reduced // window
    )


def fitting_sides(window: int) -> tuple[int, ...]:
    """Sides of the squares that `fits` with this window, in pixels."""
    return tuple(side for side in range(32, 1025, 32) if fits(side, window))


class StvitDeitSpec(FixedCountSpec):
    """STViT on DeiT: ordinary blocks, two that make semantic tokens, then blocks on these alone, whose mean is
    classified."""

    architecture: Literal["stvit-deit"] = "stvit-deit"
    family: Literal["stvit"] = "stvit"
    size: Size
    """Height and width of `pixels`, in pixels; whole patches."""
    patch: PatchSide = 16
    width: Channels
    depth: Layers
    heads: Heads
    hidden: Channels
    """Width of the MLP's inner layer."""
    norm_eps: Epsilon = 1e-5
    reduced_from: LayerNumber
    """The first of the two blocks that make semantic tokens (`stgm_start`)."""
    samples: GridSide = 4
    """Semantic tokens per side of the image."""
    classes: ClassCount

    @model_validator(mode="after")
    def _consistent(self) -> StvitDeitSpec:
        if any(side % self.patch for side in self.size):
            raise ValueError(f"both sides must be multiples of {self.patch} pixels, not {self.size[0]}x{self.size[1]}")
        check_heads(self.width, self.heads)
        # Both blocks that make them must be there; none need follow.
        if self.reduced_from + MADE_BY > self.depth:
            raise ValueError(f"semantic tokens are made by blocks {self.reduced_from} and the next, of {self.depth}")
        if min(self.grid) < self.samples:
            raise ValueError(f"a grid of {self.grid[0]}x{self.grid[1]} makes no {self.samples}x{self.samples} tokens")
        return self

    @property
    def extra_tokens(self) -> Literal[0]:
        return 0

    @property
    def semantic_tokens(self) -> int:
        """How many semantic tokens there are."""
        return self.samples**2

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens, then semantic tokens."""
        return self.patches, self.semantic_tokens

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        backbone = backbone_text(width=self.width, depth=self.depth, heads=self.heads)
        saved = f"{self.semantic_tokens} semantic tokens for {self.patches} patches from layer {self.reduced_from}"
        return ("backbone", backbone), ("reduced", saved)

    @property
    def has_dense(self) -> bool:
        """A DeiT of the same width and depth has other weights."""
        return False
