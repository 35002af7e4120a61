"""Attention inside windows: many small attentions side by side, with biases by relative position and masks.

Written out as two products and a softmax: the fused operators of the runtimes take neither biases that depend on the
window nor windows at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dovit_deploy.families.spec import Grid
from dovit_deploy.families.stvit.windows import (
    GatherRows,
    Table,
    region_table,
    relative_table,
    return_table,
    window_table,
)

SHIFT_PENALTY = 100.0
"""Taken from the score of tokens that a shifted window joins although they are no neighbours."""
PADDING_PENALTY = 1000.0
"""Taken from the score of keys that are padding."""


@dataclass(frozen=True)
class BlockShape:
    """What every block of a stage has in common."""

    width: int
    heads: int
    hidden: int
    """Inner width of the MLP."""
    norm_eps: float
    trainable: bool
    """Layer scales and tables of biases stay parameters of their own."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, windows: int, heads: int, added: Sequence[Tensor] = ()
) -> Tensor:
    """Attention in each window: queries (..., windows * n, C) over keys and values (..., windows * m, C).

    Args:
        query: window after window, as the others.
        key: what scores.
        value: what is mixed.
        windows: how many there are.
        heads: how many there are; the scale is (C / heads)^-0.5.
        added: to the scores, one after the other, of any shape that broadcasts to (..., windows, heads, n, m).
    """
    width = query.shape[-1] // heads

    def split(tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:-2], windows, tokens.shape[-2] // windows, heads, width)
        return tokens.reshape(shape).transpose(-3, -2)

    # Scaling the queries is cheaper than scaling the scores.
    scores = (split(query) * width**-0.5) @ split(key).transpose(-2, -1)
    for term in added:
        scores = scores + term
    mixed: Tensor = scores.softmax(-1) @ split(value)
    return mixed.transpose(-3, -2).reshape(query.shape)


class RelativeBias(nn.Module):
    """A learned bias for every relative position in a window and every head -> (heads, window^2, window^2)."""

    index: Tensor

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", torch.tensor(relative_table(window), device="cpu"), persistent=False)

    def forward(self) -> Tensor:
        return expanded_bias(self.table, self.index)


class ExpandedBias(nn.Module):
    """`RelativeBias` in deployment form: the bias of every pair of positions, which nothing has to look up."""

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(heads, window**2, window**2))

    def forward(self) -> Tensor:
        return self.values


def expanded_bias(table: Tensor, index: Tensor) -> Tensor:
    """Biases by relative position ((2 window - 1)^2, heads) -> of every pair of positions (heads, window^2, window^2).

    `index` is the window's `relative_table`.
    """
    side = index.shape[0]
    return table.index_select(0, index.reshape(-1)).reshape(side, side, -1).permute(2, 0, 1)


class ShiftMask(nn.Module):
    """What a rolled grid adds to scores, (windows, 1, window^2, window^2): no token sees across the seam."""

    regions: Tensor

    def __init__(self, grid: Grid, window: int, shift: int) -> None:
        super().__init__()
        # Always real, even if the network is built on the meta device: tables are no weights.
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


class WindowLayout(nn.Module):
    """Which tokens are the queries and keys of each window, and how the results go back. Blocks of a stage share one.

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
        queries: GatherRows | None = None,
        keys: GatherRows | None = None,
        join: GatherRows | None = None,
        mask: ShiftMask | PaddingMask | None = None,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.queries, self.keys, self.join, self.mask = queries, keys, join, mask


def window_layout(grid: Grid, window: int, shift: int = 0) -> WindowLayout:
    """Every window attends to itself; the grid is rolled by `shift` first, and padded to whole windows."""
    table, count = window_table(grid, window, shift=shift), grid[0] * grid[1]
    # Queries and keys share one table, which is then exported once.
    cut = GatherRows(table, count)
    mask = ShiftMask(grid, window, shift) if shift else None
    join = GatherRows(return_table(table, count), table.size)
    return WindowLayout(len(table), queries=cut, keys=cut, join=join, mask=mask)


class WindowAttention(nn.Module):
    """Attention in windows: (..., n, C) queries over (..., m, C) keys -> (..., n, C).

    Tokens are projected before they are gathered into windows, so that each is projected once. Where the layout reaches
    outside the grid, the caller gives one token more for what is there (`windows.with_empty`).

    Args:
        shape: of the block.
        layout: which tokens are queries and keys.
        relative: side of the windows for biases by relative position; 0 for none.
    """

    def __init__(self, shape: BlockShape, layout: WindowLayout, *, relative: int = 0) -> None:
        super().__init__()
        self.heads = shape.heads
        self.layout = layout
        # The bias before the output: the optimizer of a saved run knows parameters by their order.
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        # A table is fewer numbers to learn; expanded it costs a deployed graph no gather.
        kind = RelativeBias if shape.trainable else ExpandedBias
        self.bias = kind(relative, shape.heads) if relative else None
        self.output = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        layout = self.layout
        query, key, value = self.query(x), self.key(y), self.value(y)
        if layout.queries is not None:
            query = layout.queries(query)
        if layout.keys is not None:
            key, value = layout.keys(key), layout.keys(value)
        mixed = attend(query, key, value, windows=layout.windows, heads=self.heads, added=self._added())
        return self.output(mixed if layout.join is None else layout.join(mixed))  # type: ignore[no-any-return]

    def _added(self) -> list[Tensor]:
        # Not summed first: the exporter would store the sum, as a weight that is in no weights file.
        return [part() for part in (self.bias, self.layout.mask) if part is not None]
