"""FlopReport: multiply-adds (MACs) of one image, by part; and CostModel, what every family's file here offers.

One MAC is one multiply-add of a convolution, a linear layer, QK^T or AV. Norms, softmax, biases, resizing and
gathering count nothing. ViT papers and mmsegmentation print these numbers and call them FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dovit_deploy.families.evovit.spec import Selection, selection_of_layer


@dataclass(frozen=True)
class FlopReport:
    """MACs of one image, by part."""

    stem: int
    layers: int
    """All transformer layers of the backbone."""
    gates: int
    """Auxiliary heads, on the tokens they were evaluated on."""
    head: int

    @property
    def backbone(self) -> int:
        """Stem and layers, without auxiliary heads."""
        return self.stem + self.layers

    @property
    def total(self) -> int:
        """Everything that is computed."""
        return self.stem + self.layers + self.gates + self.head


class CostModel(Protocol):
    """From one architecture and token counts to MACs, in closed form."""

    def dense(self) -> FlopReport:
        """The same network with nothing stopped and without auxiliary heads."""

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """What runs when `kept[i]` tokens, extra tokens included, enter stage i; ValueError for another number."""


# How many tokens run through a layer under fixed selections.


def running_tokens(selections: tuple[Selection, ...], kept: Sequence[int] | None, layer: int, everything: int) -> int:
    """Tokens that run through `layer`; everything where nothing is selected or `kept` is None."""
    number = selection_of_layer(selections, layer)
    return everything if kept is None or number is None else kept[number + 1]


def checked_counts(kept: Sequence[int], counts: tuple[int, ...]) -> Sequence[int]:
    """`kept`; raises ValueError unless it has one entry for each of `counts`."""
    if len(kept) != len(counts):
        raise ValueError(f"{len(kept)} token counts for {len(counts)} stages")
    return kept
