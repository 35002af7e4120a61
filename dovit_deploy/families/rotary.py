"""Rotary positions: where a patch lies turns its queries and keys by angles, and nothing is added to its token.

A head's D channels are D / 2 pairs (channel i with channel i + D / 2). The first half of the pairs turns with the row
of the patch, the second half with its column, each by 2 pi times its coordinate over a period of its own. Coordinates
reach from -1 to 1 over the image, whatever its grid. Extra tokens are not turned. Source: DINOv3.

For one input size all of it is a table with a row for each token, and a stage gathers the rows of what runs in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dovit_deploy.families.spec import Grid

TABLE, PERIODS = "rotary.table", "rotary.periods"
"""Names in a network's state: the second is trained weights, the first follows from it and from the grid."""


class RotaryPositions(nn.Module):
    """What a network with rotary positions holds beside its parameters: buffers, since nothing of it is trained.

    Args:
        head_width: channels D of a head, a multiple of 4.
        extra: extra tokens before the grid's.
        grid: rows and columns of patches.
    """

    periods: Tensor
    """(D / 4,)."""
    table: Tensor
    """(E + N, D), of `rotation_table`."""

    def __init__(self, head_width: int, extra: int, grid: Grid) -> None:
        super().__init__()
        periods = periods_from_base(100.0, head_width)
        self.register_buffer("periods", periods)
        self.register_buffer("table", rotation_table(periods, extra, grid))


def periods_from_base(base: float, head_width: int) -> Tensor:
    """(D / 4,) float32: from 1 up to nearly `base`, evenly in their logarithms."""
    return base ** torch.arange(0, 1, 4 / head_width, dtype=torch.float32)[: head_width // 4]


def rotation_table(periods: Tensor, extra: int, grid: Grid) -> Tensor:
    """(E + N, D): for each token the cosines of its D / 2 angles, then their sines; 1 and 0 for extra tokens."""
    # Of the middle of each patch.
    axes = [2.0 * (torch.arange(side, dtype=torch.float32) + 0.5) / side - 1.0 for side in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2.0 * math.pi * coordinates[:, :, None] / periods).flatten(1)
    angles = torch.cat([angles.new_zeros(extra, angles.shape[1]), angles])
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotated(tokens: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Queries or keys (..., n, C), each head of each token turned by the token's row of `rows` (..., n, D)."""
    # One row serves all heads of a token.
    cosine, sine = rows.unsqueeze(-2).chunk(2, dim=-1)
    first, second = tokens.reshape(*tokens.shape[:-1], heads, rows.shape[-1]).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.flatten(-2)
