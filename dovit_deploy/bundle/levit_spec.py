"""LevitSpec: LeViT as data; LevitPyramid: what it shares with Evo-ViT on LeViT. Source: facebookresearch/LeViT."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.bundle.spec import Noun


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


class LevitPyramid(Noun):
    """A convolutional stem of stride 16, then stages on ever smaller grids, then the mean of the last one's patches."""

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

    @model_validator(mode="after")
    def _fits_together(self) -> LevitPyramid:
        if len(self.subsamples) != len(self.stages) - 1:
            raise ValueError(f"{len(self.subsamples)} subsamplings between {len(self.stages)} stages")
        if self.width % 8:
            raise ValueError(f"the first width, {self.width}, must be a multiple of 8, as the stem halves it")
        height, width = self.size
        if height != width or height % self.patch or height < self.patch:
            near = max(1, round(min(self.size) / self.patch)) * self.patch
            raise ValueError(
                f"size {height}x{width}: a square of a multiple of {self.patch} is needed ({near}x{near} is near)"
            )
        return self

    @property
    def task(self) -> Literal["classification"]:
        """A class per image."""
        return "classification"

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
    def gates(self) -> tuple[()]:
        """None: how many tokens run does not depend on the picture."""
        return ()

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the network answers."""
        return {"logits": (1, self.classes)}

    @property
    def has_dense(self) -> bool:
        """The same weights with nothing selected."""
        return True

    @property
    def head_words(self) -> str:
        """The head in a few words."""
        return "two linear, averaged" if self.distilled else "linear"

    @property
    def stage_words(self) -> str:
        """The stages in a few words."""
        return "layers: " + ", ".join(f"{one.depth} of {one.width} with {one.heads} heads" for one in self.stages)


class LevitSpec(LevitPyramid):
    """LeViT itself, the dense baseline: attention biases instead of class token and position embeddings."""

    architecture: Literal["levit"] = "levit"
    family: str = "levit"

    @property
    def extra_tokens(self) -> Literal[0]:
        """No class token."""
        return 0

    @property
    def tokens(self) -> int:
        """N."""
        return self.patches

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens."""
        return (self.tokens,)

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """None: nothing is selected."""
        return ()

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone and head in a few words each."""
        return ("backbone", self.stage_words), ("head", self.head_words)
