"""VisionTransformerSpec: the architecture as data, enough to build it, count its cost and check its weights."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SMALLEST_SIDE = 16
"""Pixels; a picture smaller than a patch is padded to one."""


class Noun(BaseModel):
    """A frozen record that travels as JSON and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearHead(Noun):
    """One linear layer per token (Segmenter's linear decoder)."""

    kind: Literal["linear"] = "linear"


class FcnHead(Noun):
    """Per token: linear -> batch norm -> ReLU -> linear (mmsegmentation's FCNHead with 1x1 kernels)."""

    kind: Literal["fcn"] = "fcn"
    channels: int = Field(gt=0)


class SetrHead(Noun):
    """LayerNorm, then `convs` x [convolution, batch norm, ReLU, bilinear x `up_scale`], then 1x1 (SETRUPHead)."""

    kind: Literal["setr"] = "setr"
    channels: int = Field(gt=0)
    convs: int = Field(default=1, ge=1)
    up_scale: int = Field(default=4, ge=1)
    kernel: Literal[1, 3] = 1
    norm_eps: float = 1e-6

    @property
    def scale(self) -> int:
        """Side of the logits over side of the token grid."""
        return int(self.up_scale**self.convs)


class MaskHead(Noun):
    """Segmenter's mask transformer: class embeddings attend with the patches, then a normalised product."""

    kind: Literal["mask"] = "mask"
    width: int = Field(gt=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(gt=0)
    norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _divisible(self) -> MaskHead:
        if self.width % self.heads:
            raise ValueError(f"the mask head's width {self.width} is not divisible by its {self.heads} heads")
        return self


Head = Annotated[LinearHead | FcnHead | SetrHead | MaskHead, Field(discriminator="kind")]
GateHead = Annotated[LinearHead | FcnHead | SetrHead, Field(discriminator="kind")]


def head_text(head: LinearHead | FcnHead | SetrHead | MaskHead) -> str:
    """A head in a few words."""
    if isinstance(head, MaskHead):
        return f"mask transformer, width {head.width}, {head.layers} layers"
    if isinstance(head, SetrHead):
        step = f"{head.kernel}x{head.kernel} convolution, x{head.up_scale}"
        return f"SETR, {head.convs} x [{step}], {head.channels} channels"
    if isinstance(head, FcnHead):
        return f"1x1 convolutions, {head.channels} channels"
    return "linear"


class PatchStem(Noun):
    """The published embedding: one convolution of patch size and stride."""

    kind: Literal["patch"] = "patch"


class ConvStem(Noun):
    """3x3 convolutions of stride 2 with batch norm and ReLU, a residual block after all but the first, then 2x2/2.

    Far better than `PatchStem` when trained from scratch; `len(widths) + 1` halvings make the patch size.
    """

    kind: Literal["conv"] = "conv"
    widths: tuple[int, ...] = (24, 48, 96)


Stem = Annotated[PatchStem | ConvStem, Field(discriminator="kind")]


class GateSpec(Noun):
    """An auxiliary head that looks at every running token before `layer` runs and stops the certain ones."""

    layer: int = Field(ge=1)
    head: GateHead


class VisionTransformerSpec(Noun):
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
