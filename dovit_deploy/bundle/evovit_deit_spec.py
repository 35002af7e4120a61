"""EvoDeitSpec: Evo-ViT on DeiT as data, and plain DeiT, which is the same with nothing selected.

Source: YifanXu74/Evo-ViT.
"""

from __future__ import annotations

import math
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
