"""FlopReport: multiply-adds (MACs) of one image, by part; and CostModel, what every architecture's cost is made of.

One MAC is one multiply-add of a convolution, a linear layer, QK^T or AV. Norms, softmax, biases, resizing and
gathering count nothing. ViT papers and mmsegmentation print these numbers and call them FLOPs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dovit_deploy.families.spec import ModelSpec


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


SpecT = TypeVar("SpecT", bound=ModelSpec)


@dataclass(frozen=True)
class CostModel(ABC, Generic[SpecT]):
    """From an architecture and token counts to MACs, in closed form."""

    spec: SpecT

    def dense(self) -> FlopReport:
        """The same network with nothing stopped and without auxiliary heads."""
        return self.report(None)

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """What runs when `kept[i]` tokens, extra tokens included, enter stage i; it rises with every entry.

        Raises:
            ValueError: not as many counts as the network has stages.
        """
        # Counts other than the spec's are taken: with gates, the data decide them.
        if len(kept) != len(self.spec.counts):
            raise ValueError(f"{len(kept)} token counts for {len(self.spec.counts)} stages")
        return self.report(kept)

    @abstractmethod
    def report(self, kept: Sequence[int] | None) -> FlopReport:
        """MACs with `kept[i]` tokens in stage i; None: the dense network."""


@dataclass(frozen=True)
class FixedCost(CostModel[SpecT]):
    """The cost of an architecture that knows its token counts beforehand and takes no others."""

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """What runs, which `kept` must name.

        Raises:
            ValueError: other counts than those of the architecture.
        """
        if tuple(kept) != self.spec.counts:
            raise ValueError(f"token counts {tuple(kept)}; this network has {self.spec.counts}")
        return self.report(kept)
