"""ModelSpec: what every architecture says of itself, whatever its family, and the union that a manifest holds.

A new family is one class that says all this, and one more member of `AnySpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Tag

from dovit_deploy.families.evovit.spec import EvoDeitSpec, EvoLevitSpec, LevitSpec
from dovit_deploy.families.parts import GateSpec
from dovit_deploy.families.stvit.spec import StvitBackboneSpec, StvitDeitSpec, StvitSegmenterSpec, StvitSwinSpec
from dovit_deploy.families.stvit.swin_spec import SwinSpec
from dovit_deploy.families.vit.spec import VisionTransformerSpec

Task = Literal["segmentation", "classification", "features"]
Size = tuple[int, int]


class ModelSpec(Protocol):
    """An architecture at one input size, as data; `Noun`s, so that they travel as JSON."""

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
    def task(self) -> Task:
        """What it answers: a class per position, a class per image, or feature maps."""

    @property
    def width(self) -> int:
        """C, the width of a token of the first grid."""

    @property
    def patch(self) -> int:
        """Side of a token of the first grid, in pixels."""

    @property
    def grid(self) -> Size:
        """Rows and columns of the first grid of tokens."""

    @property
    def patches(self) -> int:
        """N, the number of tokens of that grid."""

    @property
    def extra_tokens(self) -> int:
        """E, class and distillation tokens before the grid's."""

    @property
    def tokens(self) -> int:
        """E + N."""

    @property
    def gates(self) -> tuple[GateSpec, ...]:
        """Where the data decide how many tokens run on; the graph is cut there. Empty where counts are fixed."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that enter each stage when nothing depends on the data (with gates: when nothing stops)."""

    @property
    def keep_grids(self) -> tuple[Size, ...]:
        """Rows and columns of each choice of tokens that a graph without gates makes and reports; empty: none."""

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the network answers: `logits`, or `out0`, `out1`, ..."""

    @property
    def has_dense(self) -> bool:
        """There is a dense network of the same weights."""

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Its parts in a few words each, for people: name and text."""


def _architecture(value: Any) -> str:  # noqa: ANN401  JSON, or a spec
    """What tells the members apart; the first of them, vision transformers, do not name theirs."""
    found = value.get("architecture") if isinstance(value, Mapping) else getattr(value, "architecture", None)
    return str(found or "vision-transformer")


AnySpec = Annotated[
    Annotated[VisionTransformerSpec, Tag("vision-transformer")]
    | Annotated[EvoDeitSpec, Tag("evovit-deit")]
    | Annotated[EvoLevitSpec, Tag("evovit-levit")]
    | Annotated[LevitSpec, Tag("levit")]
    | Annotated[StvitSwinSpec, Tag("stvit-r-swin")]
    | Annotated[StvitBackboneSpec, Tag("stvit-r-backbone")]
    | Annotated[StvitSegmenterSpec, Tag("stvit-r-segmenter")]
    | Annotated[StvitDeitSpec, Tag("stvit-deit")]
    | Annotated[SwinSpec, Tag("swin")],
    Discriminator(_architecture),
]
