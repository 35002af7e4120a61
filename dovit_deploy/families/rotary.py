"""Rotary positions: where a patch lies turns its queries and keys by angles, and nothing is added to its token.

A head's D channels are D / 2 pairs (channel i with channel i + D / 2). The first half of the pairs turns with the row
of the patch, the second half with its column, each by 2 pi times its coordinate over a period of its own. Coordinates
reach from -1 to 1 over the image, whatever its grid. Extra tokens are not turned. Source: DINOv3.

For one input size all of it is two tables with a row for each token, and a stage gathers the rows of what runs in it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dovit_deploy.families.spec import Grid

PERIODS, COSINES, SINES = "rotary.periods", "rotary.cosines", "rotary.sines"
"""Names in a network's state: the first is trained weights, the others follow from it and from the grid."""


class Rotations(NamedTuple):
    """By how much tokens are turned: (..., n, D / 2) each; 1 and 0 for extra tokens."""

    cosines: Tensor
    sines: Tensor

    def at(self, index: Tensor) -> Rotations:
        """Those of the tokens `index` (n,) out of tables for all tokens; an index (B, n) gives a batch."""
        # Brackets would export to GatherND, which is slower.
        rows = (table.index_select(0, index.flatten()) for table in self)
        return Rotations(*(table.reshape(*index.shape, *table.shape[1:]) for table in rows))


class RotaryPositions(nn.Module):
    """What a network with rotary positions holds beside its parameters: buffers, since nothing of it is trained.

    Args:
        head_width: channels D of a head, a multiple of 4.
        extra: extra tokens before the grid's.
        grid: rows and columns of patches.
    """

    periods: Tensor
    """(D / 4,)."""
    cosines: Tensor
    sines: Tensor

    def __init__(self, head_width: int, extra: int, grid: Grid) -> None:
        super().__init__()
        periods = periods_from_base(100.0, head_width)
        cosines, sines = rotation_tables(periods, extra, grid)
        for name, values in (("periods", periods), ("cosines", cosines), ("sines", sines)):
            self.register_buffer(name, values)

    @property
    def tables(self) -> Rotations:
        """Of all E + N tokens."""
        return Rotations(self.cosines, self.sines)


def periods_from_base(base: float, head_width: int) -> Tensor:
    """(D / 4,) float32: from 1 up to nearly `base`, evenly in their logarithms."""
    return base ** torch.arange(0, 1, 4 / head_width, dtype=torch.float32)[: head_width // 4]


def rotation_tables(periods: Tensor, extra: int, grid: Grid) -> Rotations:
    """Those of all E + N tokens."""
    # Of the middle of each patch.
    axes = [2.0 * (torch.arange(side, dtype=torch.float32) + 0.5) / side - 1.0 for side in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2.0 * math.pi * coordinates[:, :, None] / periods).flatten(1)
    angles = torch.cat([angles.new_zeros(extra, angles.shape[1]), angles])
    return Rotations(angles.cos(), angles.sin())


_LIBRARY = torch.library.Library("dovit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("rotation(Tensor tokens, Tensor cosines, Tensor sines, int heads) -> Tensor")  # type: ignore[no-untyped-call]


def _rotation(tokens: Tensor, cosines: Tensor, sines: Tensor, heads: int) -> Tensor:
    # The same angles for every head of a token.
    cosines, sines = cosines.unsqueeze(-2), sines.unsqueeze(-2)
    first, second = tokens.reshape(*tokens.shape[:-1], heads, tokens.shape[-1] // heads).chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).flatten(-2)


# Composite, as attention is: the exporter sees one node, which ONNX Runtime has a kernel for.
_LIBRARY.impl("rotation", _rotation, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def rotated(tokens: Tensor, rotations: Rotations, heads: int) -> Tensor:
    """Queries or keys (..., n, C), each head of each token turned by the token's own angles."""
    return torch.ops.dovit.rotation(tokens, *rotations, heads)  # type: ignore[no-any-return]
