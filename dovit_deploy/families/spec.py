"""ModelSpec: what every architecture says of itself, whatever its family.

A new family is a class that says this, and a line each in `any_spec.AnySpec`, `cost.COSTS` and `registry.FAMILIES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from dovit_deploy.bounds import PixelSide
from dovit_deploy.families.parts import GateSpec
from dovit_deploy.record import Record

Task = Literal["segmentation", "classification", "features"]
"""A class per position, a class per image, or feature maps."""
Size = tuple[PixelSide, PixelSide]
"""Height and width, in pixels."""
Grid = tuple[int, int]
"""Rows and columns, in tokens."""

SMALLEST_SIDE = 16
"""PixelSide; an image smaller than a patch is padded to one."""


@dataclass(frozen=True)
class Carried:
    """A float32 tensor that later stages need beside the tokens: it travels from stage to stage as `carry.<name>`."""

    name: str
    shape: tuple[int, ...]
    given_by: tuple[int, ...]
    """Numbers of the stages that give it, each anew; between two of them it is passed on unchanged."""
    taken_by: tuple[int, ...]
    """Numbers of the stages that take it."""


class ModelSpec(Record):
    """An architecture at one input size, as data.

    What is written here is true of a classifier that runs every token through every layer; an architecture overrides
    what differs.
    """

    if TYPE_CHECKING:
        # Every spec has these, most as fields. They are declared for the type checker alone: a field of this class
        # would come first in the JSON of every spec, and manifests keep the order in which each architecture has them.
        @property
        def family(self) -> str:
            """Who published it: dovit, segmenter, setr, ..."""

        @property
        def size(self) -> Size:
            """Height and width of `pixels`."""

        @property
        def classes(self) -> int:
            """K; 0 for a backbone without a head."""

        @property
        def width(self) -> int:
            """C, the width of a token of the first grid."""

        @property
        def patch(self) -> int:
            """Side of a token of the first grid, in pixels."""

        @property
        def extra_tokens(self) -> int:
            """E, class and distillation tokens before the grid's."""

        @property
        def gates(self) -> tuple[GateSpec, ...]:
            """Where the data decide how many tokens run on; the graph is cut there. Empty where counts are fixed."""

    @model_validator(mode="after")
    def _large_enough(self) -> ModelSpec:
        if min(self.size) < SMALLEST_SIDE:
            raise ValueError(f"size {self.size[0]}x{self.size[1]}: both sides must be at least {SMALLEST_SIDE} pixels")
        return self

    @property
    def task(self) -> Task:
        """What it answers."""
        return "classification"

    @property
    def grid(self) -> Grid:
        """Rows and columns of the first grid of tokens; pixels are padded to whole patches."""
        return math.ceil(self.size[0] / self.patch), math.ceil(self.size[1] / self.patch)

    @property
    def pads_before(self) -> tuple[int, int]:
        """Rows above the image and columns left of it that padding adds; what else is missing comes behind it."""
        return 0, 0

    @property
    def patches(self) -> int:
        """N, the number of tokens of that grid."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """E + N, extra tokens included."""
        return self.extra_tokens + self.patches

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that enter each stage when nothing depends on the data (with gates: when nothing stops)."""
        return (self.tokens,)

    @property
    def carried(self) -> tuple[Carried, ...]:
        """What its stages pass on beside the tokens."""
        return ()

    @property
    def keep_grids(self) -> tuple[Grid, ...]:
        """Rows and columns of each choice of tokens that a graph without gates makes and reports; empty: none."""
        return ()

    @property
    def logits_grid(self) -> tuple[int, ...]:
        """Rows and columns of the logits; empty where an image has one class."""
        return ()

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the network answers: `logits`, or `out0`, `out1`, ..."""
        return {"logits": (1, self.classes, *self.logits_grid)}

    @property
    def has_dense(self) -> bool:
        """There is a dense network of the same weights."""
        return True

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Its parts in a few words each, for people: name and text."""
        return ()


class FixedCountSpec(ModelSpec):
    """An architecture whose token counts do not depend on the image: nothing is cut, so it has one graph."""

    @property
    def gates(self) -> tuple[()]:
        return ()
