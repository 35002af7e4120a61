"""Selection: which share of the patches runs through which layers, fixed before any picture is seen."""

from __future__ import annotations

from pydantic import Field, model_validator

from dovit_deploy.bundle.spec import Noun


class Selection(Noun):
    """Before layer `first` the patches of highest score are chosen; they run up to layer `last`, then the rest rejoin.

    Evo-ViT's stage-wise form has one selection a stage, its layer-wise form one a layer.
    """

    first: int = Field(ge=1)
    """The first layer has no scores to choose by yet."""
    last: int
    """One past the last layer that only the chosen run through."""
    ratio: float = Field(ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _rising(self) -> Selection:
        if self.last <= self.first:
            raise ValueError(f"a selection before layer {self.first} must end behind it, not at {self.last}")
        return self

    def chosen(self, patches: int) -> int:
        """How many of `patches` are chosen: truncated, as the source does it in double precision (49 * 0.5 -> 24)."""
        return int(patches * self.ratio)


def check_selections(selections: tuple[Selection, ...], depth: int) -> None:
    """Raise ValueError unless `selections` follow one another within `depth` layers."""
    free = 1
    for selection in selections:
        if selection.first < free or selection.last > depth:
            raise ValueError(
                f"selection of layers {selection.first} to {selection.last - 1}: they must follow one another "
                f"and stay within the {depth} layers"
            )
        free = selection.last


def selection_of_layer(selections: tuple[Selection, ...], layer: int) -> int | None:
    """The number of the selection that `layer` runs under; None where every token runs."""
    for number, selection in enumerate(selections):
        if selection.first <= layer < selection.last:
            return number
    return None


def selection_parts(selections: tuple[Selection, ...]) -> tuple[tuple[str, str], ...]:
    """`selections` in a few words, for people: name and text."""
    shares = ", ".join(f"{one.ratio:g} in layers {one.first} to {one.last - 1}" for one in selections)
    return (("patches that run", shares),) if selections else ()
