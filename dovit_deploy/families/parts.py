"""Parts that several architectures are made of, as data: stems, heads and gates.

Each has its counterpart in `layers`, `heads` or `vit.network`, which computes what is described here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dovit_deploy.bounds import Channels, Epsilon, Heads, Layers
from dovit_deploy.record import Record


class LinearHead(Record):
    """One linear layer per token (Segmenter's linear decoder)."""

    kind: Literal["linear"] = "linear"


class FcnHead(Record):
    """Per token: linear -> batch norm -> ReLU -> linear (mmsegmentation's FCNHead with 1x1 kernels)."""

    kind: Literal["fcn"] = "fcn"
    channels: Channels


class SetrHead(Record):
    """LayerNorm, then `convs` x [convolution, batch norm, ReLU, bilinear x `up_scale`], then 1x1 (SETRUPHead)."""

    kind: Literal["setr"] = "setr"
    channels: Channels
    convs: int = Field(default=1, ge=1, le=16)
    up_scale: int = Field(default=4, ge=1, le=16)
    kernel: Literal[1, 3] = 1
    norm_eps: Epsilon = 1e-6

    @property
    def scale(self) -> int:
        """Side of the logits over side of the token grid."""
        return int(self.up_scale**self.convs)


class MaskHead(Record):
    """Segmenter's mask transformer: class embeddings attend with the patches, then a normalised product."""

    kind: Literal["mask"] = "mask"
    width: Channels
    layers: Layers = 2
    heads: Heads
    norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _divisible(self) -> MaskHead:
        if self.width % self.heads:
            raise ValueError(f"the mask head's width {self.width} is not divisible by its {self.heads} heads")
        return self


class LightHead(Record):
    """LayerNorm, then linear to 2x2 positions of `channels` for each token, GELU, 3x3 convolution, GELU, 1x1."""

    kind: Literal["light"] = "light"
    channels: Channels
    norm_eps: Epsilon = 1e-6

    @property
    def scale(self) -> int:
        """Side of the logits over side of the token grid."""
        return 2


class QueryHead(Record):
    """Queries that run with all tokens through the backbone's last layers, then answer with a mask and a class each.

    The grid of patches is doubled `doublings` times before the masks are made of it (EoMT).
    """

    kind: Literal["query"] = "query"
    queries: int = Field(ge=1, le=65_536)
    joined: Layers = 4
    """Last layers of the backbone, in which the queries run. No token stays stopped there."""
    doublings: int = Field(default=2, ge=0, le=6)
    norm_eps: Epsilon = 1e-6
    """Of the doubling."""

    @property
    def scale(self) -> int:
        """Side of the logits over side of the token grid."""
        return int(2**self.doublings)


AnyHead = LinearHead | FcnHead | SetrHead | MaskHead | LightHead | QueryHead
Head = Annotated[AnyHead, Field(discriminator="kind")]
"""A decode head: it sees every patch."""
GateHead = Annotated[LinearHead | FcnHead | SetrHead, Field(discriminator="kind")]
"""An auxiliary head: all but SETR's look at one token at a time."""


def logits_grid(head: Record, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of what `head` answers on a `grid` of patches: SETR's, the light one and queries up-sample."""
    scale = head.scale if isinstance(head, SetrHead | LightHead | QueryHead) else 1
    return grid[0] * scale, grid[1] * scale


def head_text(head: AnyHead) -> str:
    """A head in a few words, for people."""
    if isinstance(head, MaskHead):
        return f"mask transformer, width {head.width}, {head.layers} layers"
    if isinstance(head, SetrHead):
        step = f"{head.kernel}x{head.kernel} convolution, x{head.up_scale}"
        return f"SETR, {head.convs} x [{step}], {head.channels} channels"
    if isinstance(head, LightHead):
        return f"2x2 positions a token, 3x3 convolution, {head.channels} channels"
    if isinstance(head, QueryHead):
        return f"{head.queries} queries in the last {head.joined} layers, x{head.scale}"
    if isinstance(head, FcnHead):
        return f"1x1 convolutions, {head.channels} channels"
    return "linear"


class PatchStem(Record):
    """The published embedding: one convolution of patch size and stride."""

    kind: Literal["patch"] = "patch"


class ConvStem(Record):
    """3x3 convolutions of stride 2 with batch norm and ReLU, a residual block after all but the first, then 2x2/2.

    Far better than `PatchStem` when trained from scratch; `len(widths) + 1` halvings make the patch size.
    """

    kind: Literal["conv"] = "conv"
    widths: tuple[Channels, ...] = Field(default=(24, 48, 96), min_length=1, max_length=9)


Stem = Annotated[PatchStem | ConvStem, Field(discriminator="kind")]


class GateSpec(Record):
    """An auxiliary head that looks at every running token before `layer` runs and stops the certain ones."""

    layer: Layers
    head: GateHead


PositionMode = Literal["bicubic", "bilinear", "scale", "size", "antialias"]
"""How position embeddings are resized to another grid.

bicubic, bilinear: to its size, where its *number* of tokens is another (mmsegmentation, Segmenter, DeiT).
The others are bicubic, where rows or columns are others, and differ by half a pixel or more:
scale: by the factor (rows + 0.1) / side, which also sets the sample points (DINOv2 without registers).
size: to its size (DINOv2 of transformers without registers).
antialias: to its size, over as many positions as one of the new ones covers (DINOv2 with registers, timm).
"""
MlpKind = Literal["gelu", "swiglu"]
"""What is between the two layers of a block's MLP: a GELU, or a product with a gate."""
Padding = Literal["end", "centre"]
"""Where pixels are padded to whole patches: right and bottom, or on all sides (DINOv2's official heads)."""


def backbone_text(*, width: int, depth: int, heads: int, stem: Literal["patch", "conv"] = "patch") -> str:
    """A plain stack of transformer layers in a few words, for people."""
    return f"width {width}, {depth} layers, {heads} heads, {stem} stem"


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless every attention head gets the same share of `width`."""
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")
