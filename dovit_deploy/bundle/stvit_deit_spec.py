"""STViT on DeiT as data, after the text of the paper: no official code of it was ever released."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.bundle.spec import SMALLEST_SIDE, Noun

MADE_BY = 2
"""Blocks that turn patches into semantic tokens."""


class StvitDeitSpec(Noun):
    """Ordinary blocks, two that make semantic tokens, then blocks on these alone; classification of their mean."""

    architecture: Literal["stvit-deit"] = "stvit-deit"
    family: Literal["stvit"] = "stvit"
    size: tuple[int, int]
    """Height and width of `pixels`, in pixels; whole patches."""
    patch: int = Field(default=16, gt=0)
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """Width of the MLP's inner layer."""
    norm_eps: float = 1e-5
    reduced_from: int = Field(ge=0)
    """The first of the two blocks that make semantic tokens (`stgm_start`)."""
    samples: int = Field(default=4, gt=0)
    """Semantic tokens per side of the picture."""
    classes: int = Field(gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> StvitDeitSpec:
        if min(self.size) < SMALLEST_SIDE or any(side % self.patch for side in self.size):
            raise ValueError(f"size {self.size[0]}x{self.size[1]}: both sides must be multiples of {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.reduced_from + MADE_BY > self.depth:
            raise ValueError(f"semantic tokens are made by blocks {self.reduced_from} and the next, of {self.depth}")
        if min(self.grid) < self.samples:
            raise ValueError(f"a grid of {self.grid[0]}x{self.grid[1]} makes no {self.samples}x{self.samples} tokens")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return math.ceil(self.size[0] / self.patch), math.ceil(self.size[1] / self.patch)

    @property
    def patches(self) -> int:
        """N, the number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def extra_tokens(self) -> int:
        """There is no class token: the head sees a mean."""
        return 0

    @property
    def tokens(self) -> int:
        """All tokens at the start."""
        return self.patches

    @property
    def semantic_tokens(self) -> int:
        """How many semantic tokens there are."""
        return self.samples**2

    @property
    def gates(self) -> tuple[()]:
        """Nothing here depends on the data."""
        return ()

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens, then semantic tokens."""
        return self.patches, self.semantic_tokens

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone and what it saves in a few words."""
        backbone = f"width {self.width}, {self.depth} layers, {self.heads} heads, patch stem"
        saved = f"{self.semantic_tokens} semantic tokens for {self.patches} patches from layer {self.reduced_from}"
        return ("backbone", backbone), ("reduced", saved)

    @property
    def task(self) -> Literal["classification"]:
        """What it is for."""
        return "classification"

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the results."""
        return {"logits": (1, self.classes)}

    @property
    def has_dense(self) -> bool:
        """A DeiT of the same width and depth has other weights."""
        return False

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """No token is selected."""
        return ()
