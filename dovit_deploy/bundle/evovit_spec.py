"""EvoDeitSpec, EvoLevitSpec: Evo-ViT on DeiT and on LeViT as data. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dovit_deploy.bundle.spec import SMALLEST_SIDE, LinearHead, MaskHead, Noun, PatchStem, SetrHead, Stem, head_text
from dovit_deploy.bundle.token_selection import Selection, check_selections, selection_parts

Task = Literal["segmentation", "classification"]


class PooledHead(Noun):
    """Classification: the mean of the patches, LayerNorm, then one linear layer."""

    kind: Literal["pooled"] = "pooled"


class ClassTokenHead(Noun):
    """Classification as plain DeiT does it: LayerNorm, then one linear layer on the class token.

    With a distillation token a second linear layer looks at that one, and the logits are the mean of both.
    """

    kind: Literal["class_token"] = "class_token"


EvoHead = Annotated[PooledHead | ClassTokenHead | LinearHead | SetrHead | MaskHead, Field(discriminator="kind")]


class EvoDeitSpec(Noun):
    """Evo-ViT on DeiT: a vision transformer whose `selections` let the best patches run and the rest wait unchanged.

    Without selections it is plain DeiT, the dense baseline.
    """

    architecture: Literal["evovit-deit"] = "evovit-deit"
    family: str = "evovit-deit"
    size: tuple[int, int]
    """Height and width of `pixels`, in pixels; for segmentation padded right and bottom to whole patches."""
    patch: int = Field(default=16, gt=0)
    stem: Stem = PatchStem()
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """Width of the MLP's inner layer."""
    extra_tokens: Literal[1, 2] = 1
    """1: class token; 2: class and distillation token (plain distilled DeiT)."""
    norm_eps: float = 1e-6
    classes: int = Field(gt=0)
    selections: tuple[Selection, ...] = ()
    tradeoffs: tuple[float, ...] = ()
    """Per layer: how much of a token's score is this layer's class attention; the rest is the score so far."""
    rejoin_last: bool = True
    """False (`prunecls`): tokens that the last layer did not run on take no part in the mean."""
    position_mode: Literal["bicubic", "bilinear"] = "bilinear"
    """How position embeddings are resized to another grid."""
    head: EvoHead = PooledHead()

    @model_validator(mode="after")
    def _consistent(self) -> EvoDeitSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        check_selections(self.selections, self.depth)
        if self.selections and len(self.tradeoffs) != self.depth:
            raise ValueError(f"{len(self.tradeoffs)} trade-offs for {self.depth} layers")
        if self.selections and isinstance(self.head, ClassTokenHead):
            raise ValueError("a head on the class token belongs to plain DeiT, which selects nothing")
        if self.extra_tokens == 2 and not isinstance(self.head, ClassTokenHead):
            raise ValueError("a distillation token belongs to plain DeiT, whose head reads it")
        if not self.rejoin_last and self.task == "segmentation":
            raise ValueError("segmentation needs every token at the end; rejoin_last must be true")
        self._check_size()
        return self

    def _check_size(self) -> None:
        height, width = self.size
        if self.task == "segmentation" and min(self.size) < SMALLEST_SIDE:
            raise ValueError(f"size {height}x{width}: both sides must be at least {SMALLEST_SIDE}")
        if self.task == "classification" and (min(self.size) < self.patch or height % self.patch or width % self.patch):
            near = "x".join(str(max(1, round(side / self.patch)) * self.patch) for side in self.size)
            raise ValueError(
                f"size {height}x{width}: both sides must be multiples of the patch, {self.patch} ({near} is near)"
            )

    @property
    def task(self) -> Task:
        """What the head makes of the tokens."""
        return "classification" if isinstance(self.head, PooledHead | ClassTokenHead) else "segmentation"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return math.ceil(self.size[0] / self.patch), math.ceil(self.size[1] / self.patch)

    @property
    def patches(self) -> int:
        """N, the number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """E + N, extra tokens included."""
        return self.extra_tokens + self.patches

    @property
    def gates(self) -> tuple[()]:
        """None: how many tokens run does not depend on the picture."""
        return ()

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens, then those that run under each selection, extra tokens included."""
        chosen = (self.extra_tokens + selection.chosen(self.patches) for selection in self.selections)
        return (self.tokens, *chosen)

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the patches that each selection chooses from."""
        return (self.grid,) * len(self.selections)

    @property
    def logits_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the decode head's output; None for classification."""
        if self.task == "classification":
            return None
        scale = self.head.scale if isinstance(self.head, SetrHead) else 1
        return self.grid[0] * scale, self.grid[1] * scale

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the network answers."""
        return {"logits": (1, self.classes, *(self.logits_grid or ()))}

    @property
    def has_dense(self) -> bool:
        """The same weights with nothing selected (ratios 1)."""
        return True

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone, selections and head in a few words each."""
        backbone = f"width {self.width}, {self.depth} layers, {self.heads} heads, {self.stem.kind} stem"
        pooled = {"pooled": "linear, on the mean of the patches", "class_token": "linear, on the class token"}
        head = self.head
        text = pooled[head.kind] if isinstance(head, PooledHead | ClassTokenHead) else head_text(head)
        return ("backbone", backbone), *selection_parts(self.selections), ("head", text)


class LevitStage(Noun):
    """Layers of attention and MLP on one grid."""

    width: int = Field(gt=0)
    depth: int = Field(ge=1)
    heads: int = Field(gt=0)
    key: int = Field(gt=0)
    """Width of a query and a key of one head."""
    value: int = Field(gt=0)
    """Width of a value of one head."""
    hidden: int = Field(gt=0)
    """Width of the MLP's inner layer."""


class LevitSubsample(Noun):
    """Attention whose queries are every second row and column of the grid, then an MLP at the next stage's width."""

    heads: int = Field(gt=0)
    key: int = Field(gt=0)
    value: int = Field(gt=0)
    hidden: int = Field(gt=0)
    stride: int = Field(default=2, ge=1)


class EvoLevitSpec(Noun):
    """Evo-ViT on LeViT: a pyramid whose `selections` let a representative token stand for the patches not chosen."""

    architecture: Literal["evovit-levit"] = "evovit-levit"
    family: str = "evovit-levit"
    size: tuple[int, int]
    """Height and width of `pixels`, in pixels."""
    patch: Literal[16] = 16
    """Four convolutions of stride 2."""
    stages: tuple[LevitStage, ...] = Field(min_length=1)
    subsamples: tuple[LevitSubsample, ...]
    """Between one stage and the next."""
    classes: int = Field(gt=0)
    distilled: bool
    """Two linear heads whose mean is taken."""
    selections: tuple[Selection, ...] = ()
    """Layers are numbered over all stages; no selection crosses a stage."""
    tradeoff: float | None = Field(default=None, ge=0.0, le=1.0)
    """How much of a token's score is one layer's class attention; None: learned, one number a layer."""

    @model_validator(mode="after")
    def _consistent(self) -> EvoLevitSpec:
        if len(self.subsamples) != len(self.stages) - 1:
            raise ValueError(f"{len(self.subsamples)} subsamplings between {len(self.stages)} stages")
        check_selections(self.selections, self.depth)
        for selection in self.selections:
            if self.stage_of_layer(selection.first) != self.stage_of_layer(selection.last - 1):
                raise ValueError(f"a selection of layers {selection.first} to {selection.last - 1} crosses a stage")
        if self.stages[0].width % 8:
            raise ValueError(f"the first width, {self.stages[0].width}, must be a multiple of 8, as the stem halves it")
        height, width = self.size
        if height != width or height % self.patch or height < self.patch:
            near = max(1, round(min(self.size) / self.patch)) * self.patch
            raise ValueError(
                f"size {height}x{width}: a square of a multiple of {self.patch} is needed ({near}x{near} is near)"
            )
        return self

    @property
    def task(self) -> Task:
        """Always classification."""
        return "classification"

    @property
    def depth(self) -> int:
        """Layers of all stages, subsamplings not counted."""
        return sum(stage.depth for stage in self.stages)

    @property
    def stage_layers(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last layer of each stage."""
        return tuple(itertools.pairwise(itertools.accumulate((stage.depth for stage in self.stages), initial=0)))

    def stage_of_layer(self, layer: int) -> int:
        """The stage that `layer` belongs to."""
        return next(number for number, (first, last) in enumerate(self.stage_layers) if first <= layer < last)

    @property
    def stage_grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each stage's patches."""
        return tuple(self._grids())

    def _grids(self) -> Iterator[tuple[int, int]]:
        rows, columns = self.grid
        yield rows, columns
        for subsample in self.subsamples:
            rows, columns = (rows - 1) // subsample.stride + 1, (columns - 1) // subsample.stride + 1
            yield rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first stage's patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def patches(self) -> int:
        """N, the number of patch tokens of the first stage."""
        return self.grid[0] * self.grid[1]

    @property
    def extra_tokens(self) -> Literal[1]:
        """The class token."""
        return 1

    @property
    def tokens(self) -> int:
        """1 + N."""
        return self.extra_tokens + self.patches

    @property
    def gates(self) -> tuple[()]:
        """None: how many tokens run does not depend on the picture."""
        return ()

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the patches that each selection chooses from."""
        return tuple(self.stage_grids[self.stage_of_layer(selection.first)] for selection in self.selections)

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens, then those that run under each selection: class token, chosen patches, representative token."""
        pairs = zip(self.selections, self.keep_grids, strict=True)
        chosen = (selection.chosen(rows * columns) for selection, (rows, columns) in pairs)
        drops = (rows * columns for rows, columns in self.keep_grids)
        return (self.tokens, *(1 + count + (count < whole) for count, whole in zip(chosen, drops, strict=True)))

    @property
    def width(self) -> int:
        """C of the first stage."""
        return self.stages[0].width

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the network answers."""
        return {"logits": (1, self.classes)}

    @property
    def has_dense(self) -> bool:
        """The same weights with nothing selected (ratios 1)."""
        return True

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone, selections and head in a few words each."""
        stages = ", ".join(f"{one.depth} of {one.width} with {one.heads} heads" for one in self.stages)
        head = "two linear, averaged" if self.distilled else "linear"
        return ("backbone", f"layers: {stages}"), *selection_parts(self.selections), ("head", head)
