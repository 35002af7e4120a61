"""Attention inside windows: many small attentions side by side, with biases by relative position and masks.

Written out as two products and a softmax: the fused operators of the runtimes take neither biases that depend on the
window nor windows at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dovit_deploy.models.windows import Grid, Rows, Table, region_table, relative_places, return_table, window_table

SHIFT_PENALTY = 100.0
"""Taken from the score of tokens that a shifted window joins although they are no neighbours."""
PADDING_PENALTY = 1000.0
"""Taken from the score of keys that are padding."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, windows: int, heads: int, bias: Tensor | None = None
) -> Tensor:
    """Attention in each window: queries (..., windows * n, C) over keys and values (..., windows * m, C).

    Args:
        query: window after window, as the others.
        key: what scores.
        value: what is mixed.
        windows: how many there are.
        heads: how many there are; the scale is (C / heads)^-0.5.
        bias: added to the scores, of any shape that broadcasts to (..., windows, heads, n, m).
    """
    width = query.shape[-1] // heads

    def split(tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:-2], windows, tokens.shape[-2] // windows, heads, width)
        return tokens.reshape(shape).transpose(-3, -2)

    # Scaling the queries is cheaper than scaling the scores.
    scores = (split(query) * width**-0.5) @ split(key).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    mixed: Tensor = scores.softmax(-1) @ split(value)
    return mixed.transpose(-3, -2).reshape(query.shape)


class RelativeBias(nn.Module):
    """A learned bias for every relative position in a window and every head -> (heads, window^2, window^2)."""

    places: Tensor

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.side = window * window
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = torch.tensor(relative_places(window).reshape(-1), device="cpu")
        self.register_buffer("places", places, persistent=False)

    def forward(self) -> Tensor:
        return self.table.index_select(0, self.places).reshape(self.side, self.side, -1).permute(2, 0, 1)


class ShiftMask(nn.Module):
    """What a rolled grid adds to scores, (windows, 1, window^2, window^2): no token sees across the seam."""

    regions: Tensor

    def __init__(self, grid: Grid, window: int, shift: int) -> None:
        super().__init__()
        regions = torch.tensor(region_table(grid, window, shift=shift), device="cpu")
        self.register_buffer("regions", regions, persistent=False)

    def forward(self) -> Tensor:
        # Made in the graph: the regions are a fiftieth of the mask.
        apart = self.regions[:, None, :, None] != self.regions[:, None, None, :]
        return apart.to(torch.float32) * -SHIFT_PENALTY


class PaddingMask(nn.Module):
    """What hidden keys add to scores, (windows, 1, 1, m).

    Args:
        hidden: (windows, m) bool.
    """

    hidden: Tensor

    def __init__(self, hidden: Table) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.tensor(hidden, device="cpu"), persistent=False)

    def forward(self) -> Tensor:
        return self.hidden[:, None, None, :].to(torch.float32) * -PADDING_PENALTY


class Placement(nn.Module):
    """Where queries and keys of each window lie, and how the results go back. Blocks of a stage share one.

    Args:
        windows: how many there are.
        queries: the queries of every window; None where they come window after window.
        keys: the same for keys and values.
        join: from the windows back to tokens; None where they stay window after window.
        mask: added to the scores.
    """

    def __init__(
        self,
        windows: int,
        *,
        queries: Rows | None = None,
        keys: Rows | None = None,
        join: Rows | None = None,
        mask: ShiftMask | PaddingMask | None = None,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.queries, self.keys, self.join, self.mask = queries, keys, join, mask


def window_placement(grid: Grid, window: int, shift: int = 0) -> Placement:
    """Every window attends to itself; the grid is rolled by `shift` first, and padded to whole windows."""
    table, count = window_table(grid, window, shift=shift), grid[0] * grid[1]
    cut = Rows(table, count)
    mask = ShiftMask(grid, window, shift) if shift else None
    join = Rows(return_table(table, count), table.size)
    return Placement(len(table), queries=cut, keys=cut, join=join, mask=mask)


class PlacedAttention(nn.Module):
    """Attention in windows: (..., n, C) queries over (..., m, C) keys -> (..., n, C).

    Tokens are projected before they are gathered into windows, so that each is projected once. Where the placement
    reaches outside the grid, the caller gives one token more for what lies there (`windows.with_empty`).
    """

    def __init__(self, width: int, heads: int, placement: Placement, *, relative: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.placement = placement
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.bias = RelativeBias(relative, heads) if relative else None
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        place = self.placement
        query, key, value = self.query(x), self.key(y), self.value(y)
        if place.queries is not None:
            query = place.queries(query)
        if place.keys is not None:
            key, value = place.keys(key), place.keys(value)
        mixed = attend(query, key, value, windows=place.windows, heads=self.heads, bias=self._bias())
        return self.output(mixed if place.join is None else place.join(mixed))  # type: ignore[no-any-return]

    def _bias(self) -> Tensor | None:
        mask = None if self.placement.mask is None else self.placement.mask()
        if self.bias is None:
            return mask
        bias: Tensor = self.bias()
        return bias if mask is None else bias + mask
