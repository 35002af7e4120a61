"""Evo-ViT as data: a share of the patches, chosen by class attention, runs through some layers while the rest wait.

`EvoDeitSpec` is Evo-ViT on DeiT and, with nothing selected, plain DeiT; `EvoLevitSpec` is Evo-ViT on LeViT, and
`LevitSpec` LeViT itself. Sources: YifanXu74/Evo-ViT, facebookresearch/LeViT.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dovit_deploy.bounds import (
    MOST_STAGES,
    Channels,
    ClassCount,
    Epsilon,
    GridSide,
    Heads,
    Layers,
    Name,
    PatchSide,
    Share,
)
from dovit_deploy.families.parts import (
    LinearHead,
    MaskHead,
    PatchStem,
    PositionMode,
    SetrHead,
    Stem,
    backbone_text,
    check_heads,
    head_text,
    logits_grid,
)
from dovit_deploy.families.spec import FixedCountSpec, Grid, Size
from dovit_deploy.record import Record


class TokenSelection(Record):
    """Before layer `first` the patches of highest score are chosen; they run up to layer `last`, then the rest rejoin.

    Evo-ViT's stage-wise form has one selection a stage, its layer-wise form one a layer. The share is fixed before any
    image is seen.
    """

    first: Layers
    """The first layer has no scores to choose by yet."""
    last: Layers
    """One past the last layer that only the chosen run through."""
    ratio: Share

    @model_validator(mode="after")
    def _rising(self) -> TokenSelection:
        if self.last <= self.first:
            raise ValueError(f"a selection before layer {self.first} must end behind it, not at {self.last}")
        return self

    def chosen(self, patches: int) -> int:
        """How many of `patches` are chosen: truncated, as the source does it in double precision (49 * 0.5 -> 24)."""
        return int(patches * self.ratio)


def check_selections(selections: tuple[TokenSelection, ...], depth: int) -> None:
    """Raise ValueError unless `selections` follow one another within `depth` layers."""
    # Layer 0 is never selected for: there are no scores before it.
    free = 1
    for selection in selections:
        if selection.first < free or selection.last > depth:
            raise ValueError(
                f"selection of layers {selection.first} to {selection.last - 1}: they must follow one another "
                f"and stay within the {depth} layers"
            )
        free = selection.last


def selection_of_layer(selections: tuple[TokenSelection, ...], layer: int) -> int | None:
    """The number of the selection that `layer` runs under; None where every token runs."""
    for number, selection in enumerate(selections):
        if selection.first <= layer < selection.last:
            return number
    return None


def selection_parts(selections: tuple[TokenSelection, ...]) -> tuple[tuple[str, str], ...]:
    """`selections` in a few words, for people: name and text."""
    shares = ", ".join(f"{one.ratio:g} in layers {one.first} to {one.last - 1}" for one in selections)
    return (("patches that run", shares),) if selections else ()


class PooledHead(Record):
    """Classification: the mean of the patches, LayerNorm, then one linear layer."""

    kind: Literal["pooled"] = "pooled"


class ClassTokenHead(Record):
    """Classification as plain DeiT does it: LayerNorm, then one linear layer on the class token.

    With a distillation token a second linear layer looks at that one, and the logits are the mean of both.
    """

    kind: Literal["class_token"] = "class_token"


EvoHead = Annotated[PooledHead | ClassTokenHead | LinearHead | SetrHead | MaskHead, Field(discriminator="kind")]


class EvoDeitSpec(FixedCountSpec):
    """Evo-ViT on DeiT: a vision transformer whose `selections` let the best patches run and the rest wait unchanged.

    Without selections it is plain DeiT, the dense baseline.
    """

    architecture: Literal["evovit-deit"] = "evovit-deit"
    family: Name = "evovit-deit"
    size: Size
    """Height and width of `pixels`, in pixels; for segmentation padded right and bottom to whole patches."""
    patch: PatchSide = 16
    stem: Stem = PatchStem()
    width: Channels
    depth: Layers
    heads: Heads
    hidden: Channels
    """Width of the MLP's inner layer."""
    extra_tokens: Literal[1, 2] = 1
    """1: class token; 2: class and distillation token (plain distilled DeiT)."""
    norm_eps: Epsilon = 1e-6
    classes: ClassCount
    selections: tuple[TokenSelection, ...] = Field(default=(), max_length=MOST_STAGES - 1)
    tradeoffs: tuple[Share, ...] = Field(default=(), max_length=MOST_STAGES - 1)
    """Per layer: how much of a token's score is this layer's class attention; the rest is the score so far."""
    rejoin_last: bool = True
    """False (`prunecls`): tokens that the last layer did not run on take no part in the mean."""
    position_mode: PositionMode = "bilinear"
    head: EvoHead = PooledHead()

    @model_validator(mode="after")
    def _consistent(self) -> EvoDeitSpec:
        check_heads(self.width, self.heads)
        check_selections(self.selections, self.depth)
        if self.selections and len(self.tradeoffs) != self.depth:
            raise ValueError(f"{len(self.tradeoffs)} trade-offs for {self.depth} layers")
        if self.selections and isinstance(self.head, ClassTokenHead):
            raise ValueError("a head on the class token belongs to plain DeiT, which selects nothing")
        if self.extra_tokens == 2 and not isinstance(self.head, ClassTokenHead):
            raise ValueError("a distillation token belongs to plain DeiT, whose head reads it")
        if not self.rejoin_last and self.task == "segmentation":
            raise ValueError("segmentation needs every token at the end; rejoin_last must be true")
        # The published classifiers do not pad; a segmenter does, as every vision transformer here.
        if self.task == "classification" and any(side % self.patch for side in self.size):
            near = "x".join(str(max(1, round(side / self.patch)) * self.patch) for side in self.size)
            raise ValueError(
                f"size {self.size[0]}x{self.size[1]}: both sides must be multiples of the patch, {self.patch} "
                f"({near} is near)"
            )
        return self

    @property
    def task(self) -> Literal["segmentation", "classification"]:
        return "classification" if isinstance(self.head, PooledHead | ClassTokenHead) else "segmentation"

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens, then those that run under each selection, extra tokens included."""
        chosen = (self.extra_tokens + selection.chosen(self.patches) for selection in self.selections)
        return (self.tokens, *chosen)

    @property
    def keep_grids(self) -> tuple[Grid, ...]:
        return (self.grid,) * len(self.selections)

    @property
    def logits_grid(self) -> tuple[int, ...]:
        return () if self.task == "classification" else logits_grid(self.head, self.grid)

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        backbone = backbone_text(width=self.width, depth=self.depth, heads=self.heads, stem=self.stem.kind)
        pooled = {"pooled": "linear, on the mean of the patches", "class_token": "linear, on the class token"}
        head = self.head
        text = pooled[head.kind] if isinstance(head, PooledHead | ClassTokenHead) else head_text(head)
        return ("backbone", backbone), *selection_parts(self.selections), ("head", text)


class LevitStage(Record):
    """Layers of attention and MLP on one grid."""

    width: Channels
    depth: Layers
    heads: Heads
    key: Channels
    """Width of a query and a key of one head."""
    value: Channels
    """Width of a value of one head."""
    hidden: Channels
    """Width of the MLP's inner layer."""


class LevitSubsample(Record):
    """Attention whose queries are every second row and column of the grid, then an MLP at the next stage's width."""

    heads: Heads
    key: Channels
    value: Channels
    hidden: Channels
    stride: GridSide = 2


class LevitPyramid(FixedCountSpec):
    """What LeViT and Evo-ViT on it share.

    A convolutional stem of stride 16, then stages on ever smaller grids, then the mean of the last one's patches.
    """

    size: Size
    """Height and width of `pixels`, in pixels."""
    patch: Literal[16] = 16
    """Four convolutions of stride 2."""
    stages: tuple[LevitStage, ...] = Field(min_length=1, max_length=16)
    subsamples: tuple[LevitSubsample, ...] = Field(max_length=16)
    """Between one stage and the next."""
    classes: ClassCount
    distilled: bool
    """Two linear heads whose mean is taken."""

    @model_validator(mode="after")
    def _fits_together(self) -> LevitPyramid:
        if len(self.subsamples) != len(self.stages) - 1:
            raise ValueError(f"{len(self.subsamples)} subsamplings between {len(self.stages)} stages")
        # The stem goes from width / 8 to the width in three steps.
        if self.width % 8:
            raise ValueError(f"the first width, {self.width}, must be a multiple of 8, as the stem halves it")
        height, width = self.size
        if height != width or height % self.patch:
            near = max(1, round(min(self.size) / self.patch)) * self.patch
            raise ValueError(
                f"size {height}x{width}: a square of a multiple of {self.patch} is needed ({near}x{near} is near)"
            )
        return self

    @property
    def width(self) -> int:
        """C of the first stage."""
        return self.stages[0].width

    @property
    def depth(self) -> int:
        """Layers of all stages, subsamplings not counted."""
        return sum(stage.depth for stage in self.stages)

    @property
    def stage_layers(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last layer of each stage."""
        return tuple(itertools.pairwise(itertools.accumulate((stage.depth for stage in self.stages), initial=0)))

    @property
    def stage_grids(self) -> tuple[Grid, ...]:
        """Rows and columns of each stage's patches."""
        grids = [self.grid]
        for subsample in self.subsamples:
            # Rows 0, stride, 2 * stride, ...: the first is always among them.
            rows, columns = grids[-1]
            grids.append(((rows - 1) // subsample.stride + 1, (columns - 1) // subsample.stride + 1))
        return tuple(grids)

    @property
    def head_text(self) -> str:
        """The head in a few words, for people."""
        return "two linear, averaged" if self.distilled else "linear"

    @property
    def stages_text(self) -> str:
        """The stages in a few words, for people."""
        return "layers: " + ", ".join(f"{one.depth} of {one.width} with {one.heads} heads" for one in self.stages)


class LevitSpec(LevitPyramid):
    """LeViT itself, the dense baseline: attention biases instead of class token and position embeddings."""

    architecture: Literal["levit"] = "levit"
    family: Name = "levit"

    @property
    def extra_tokens(self) -> Literal[0]:
        return 0

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        return ("backbone", self.stages_text), ("head", self.head_text)


class EvoLevitSpec(LevitPyramid):
    """Evo-ViT on LeViT: a pyramid whose `selections` let a representative token stand for the patches not chosen."""

    architecture: Literal["evovit-levit"] = "evovit-levit"
    family: Name = "evovit-levit"
    selections: tuple[TokenSelection, ...] = Field(default=(), max_length=MOST_STAGES - 1)
    """Layers are numbered over all stages; no selection crosses a stage."""
    tradeoff: Share | None = None
    """How much of a token's score is one layer's class attention; None: learned, one number a layer."""

    @model_validator(mode="after")
    def _selects_within_stages(self) -> EvoLevitSpec:
        check_selections(self.selections, self.depth)
        for selection in self.selections:
            if self.stage_of_layer(selection.first) != self.stage_of_layer(selection.last - 1):
                raise ValueError(f"a selection of layers {selection.first} to {selection.last - 1} crosses a stage")
        return self

    def stage_of_layer(self, layer: int) -> int:
        """The stage that `layer` belongs to."""
        return next(number for number, (first, last) in enumerate(self.stage_layers) if first <= layer < last)

    @property
    def extra_tokens(self) -> Literal[1]:
        return 1

    @property
    def keep_grids(self) -> tuple[Grid, ...]:
        return tuple(self.stage_grids[self.stage_of_layer(selection.first)] for selection in self.selections)

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens, then those that run under each selection: class token, chosen patches, representative token."""
        wholes = [rows * columns for rows, columns in self.keep_grids]
        chosen = [selection.chosen(whole) for selection, whole in zip(self.selections, wholes, strict=True)]
        # Where every patch is chosen there is nothing to represent.
        return (self.tokens, *(1 + some + (some < whole) for some, whole in zip(chosen, wholes, strict=True)))

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        return ("backbone", self.stages_text), *selection_parts(self.selections), ("head", self.head_text)
