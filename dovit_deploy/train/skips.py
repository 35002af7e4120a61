"""Drop-path: in a training step some images of a batch skip some layers, which then must not rely on each other.

An image that skips a layer is not computed there, so that steps get cheaper, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """The images of a batch that go through a layer, and what the layer's contribution to them is multiplied by."""

    images: Tensor
    """(b,) int64."""
    scale: float


@dataclass(frozen=True)
class Skips:
    """Layer `i` of `depth` is skipped with probability `rate * i / (depth - 1)`: the first never, the last most often.

    What is drawn follows `draw` alone, layer by layer.
    """

    rate: float
    depth: int
    draw: np.random.Generator

    def at(self, layer: int, batch: int) -> Shown | None:
        """What goes through `layer` of so many images; None: all of them, as they are."""
        skipped = self.rate * layer / max(1, self.depth - 1)
        if not skipped:
            return None
        shown = np.flatnonzero(self.draw.random(batch) >= skipped)
        # So that on average a layer adds as much as at inference, where no image skips it.
        return Shown(torch.from_numpy(shown), 1.0 / (1.0 - skipped))


def through(layer: Callable[[Tensor, Tensor | None], Tensor], tokens: Tensor, shown: Shown | None) -> Tensor:
    """`tokens` (B, n, C) after `layer`, or as they are where their image skips it.

    Args:
        layer: takes the tokens of some images and their numbers, None for all images.
        tokens: of all images.
        shown: what goes through.
    """
    if shown is None:
        return layer(tokens, None)
    if not len(shown.images):
        return tokens
    images = shown.images.to(tokens.device)
    before = tokens.index_select(0, images)
    added = (layer(before, images) - before) * shown.scale
    return tokens.index_add(0, images, added.to(tokens.dtype))
