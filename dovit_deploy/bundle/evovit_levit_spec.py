"""EvoLevitSpec: Evo-ViT on LeViT as data. Source: YifanXu74/Evo-ViT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.bundle.levit_spec import LevitPyramid
from dovit_deploy.bundle.token_selection import Selection, check_selections, selection_parts


class EvoLevitSpec(LevitPyramid):
    """Evo-ViT on LeViT: a pyramid whose `selections` let a representative token stand for the patches not chosen."""

    architecture: Literal["evovit-levit"] = "evovit-levit"
    family: str = "evovit-levit"
    selections: tuple[Selection, ...] = ()
    """Layers are numbered over all stages; no selection crosses a stage."""
    tradeoff: float | None = Field(default=None, ge=0.0, le=1.0)
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
        """The class token."""
        return 1

    @property
    def tokens(self) -> int:
        """1 + N."""
        return self.extra_tokens + self.patches

    @property
    def keep_grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the patches that each selection chooses from."""
        return tuple(self.stage_grids[self.stage_of_layer(selection.first)] for selection in self.selections)

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens, then those that run under each selection: class token, chosen patches, representative token."""
        wholes = [rows * columns for rows, columns in self.keep_grids]
        chosen = [selection.chosen(whole) for selection, whole in zip(self.selections, wholes, strict=True)]
        return (self.tokens, *(1 + some + (some < whole) for some, whole in zip(chosen, wholes, strict=True)))

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone, selections and head in a few words each."""
        return ("backbone", self.stage_words), *selection_parts(self.selections), ("head", self.head_words)
