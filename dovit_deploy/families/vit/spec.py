"""VisionTransformerSpec: the architecture as data, enough to build it, count its cost and check its weights."""

from __future__ import annotations

import itertools
import math
from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.families.parts import SMALLEST_SIDE, ConvStem, GateSpec, Head, PatchStem, SetrHead, Stem, head_text
from dovit_deploy.record import Record


class VisionTransformerSpec(Record):
    """A (dynamic-token) vision transformer for segmentation at one input size.

    DoViT is this with gates; Segmenter and SETR are this without.
    """

    family: str
    size: tuple[int, int]
    """Height and width of `pixels`, in pixels; padded right and bottom to whole patches inside the network."""
    patch: int = Field(default=16, gt=0)
    stem: Stem = PatchStem()
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """Width of the MLP's inner layer."""
    extra_tokens: Literal[0, 1, 2] = 1
    """1: class token; 2: class and distillation token; 0: mmsegmentation's `with_cls_token=False`, never with gates."""
    norm_eps: float = 1e-6
    final_norm: bool = True
    classes: int = Field(gt=0)
    gates: tuple[GateSpec, ...] = ()
    aggregate_rate: float = 0.1
    """The class token takes in the stopped tokens' mean when more than this share of all tokens has stopped."""
    position_mode: Literal["bicubic", "bilinear"] = "bicubic"
    """How position embeddings are resized to another grid."""
    head: Head

    @model_validator(mode="after")
    def _consistent(self) -> VisionTransformerSpec:
        if min(self.size) < SMALLEST_SIDE:
            raise ValueError(f"size {self.size[0]}x{self.size[1]}: both sides must be at least {SMALLEST_SIDE}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.gates and not self.extra_tokens:
            raise ValueError("gates need a class token")
        layers = [gate.layer for gate in self.gates]
        if layers != sorted(set(layers)) or any(layer >= self.depth for layer in layers):
            raise ValueError(f"gates {layers} must rise and stay below the depth {self.depth}")
        if isinstance(self.stem, ConvStem) and 2 ** (len(self.stem.widths) + 1) != self.patch:
            raise ValueError(f"a stem of {len(self.stem.widths)} widths does not make patches of {self.patch}")
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
    def tokens(self) -> int:
        """E + N, extra tokens included."""
        return self.extra_tokens + self.patches

    @property
    def stage_layers(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last layer of each stage; a stage ends where a gate stands."""
        cuts = [0, *(gate.layer for gate in self.gates), self.depth]
        return tuple(itertools.pairwise(cuts))

    @property
    def task(self) -> Literal["segmentation"]:
        """A class per position."""
        return "segmentation"

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that enter each stage when nothing stops."""
        return (self.tokens,) * len(self.stage_layers)

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """None: gates decide between graphs, and not inside of one."""
        return ()

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Logits on the decode head's grid."""
        return {"logits": (1, self.classes, *self.logits_grid)}

    @property
    def has_dense(self) -> bool:
        """The same weights without gates."""
        return True

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone and decode head in a few words."""
        backbone = f"width {self.width}, {self.depth} layers, {self.heads} heads, {self.stem.kind} stem"
        return ("backbone", backbone), ("decode head", head_text(self.head))

    @property
    def logits_grid(self) -> tuple[int, int]:
        """Rows and columns of the decode head's output."""
        scale = self.head.scale if isinstance(self.head, SetrHead) else 1
        return self.grid[0] * scale, self.grid[1] * scale
