"""Every window, shift, pooling bin and neighbourhood of a grid as a table of token numbers, and the gather of one.

A table is computed once for a grid, and one gather then carries it out, whatever the grid's sides are: no reshaping
that needs whole windows. Tokens are numbered in raster order; the number `rows * columns`, one past the last token,
stands for a position outside the grid, which holds a token of zeros.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from dovit_deploy.families.spec import Grid

Table = NDArray[np.int64]
"""Token numbers, a row per window, square or bin."""


class GatherRows(nn.Module):
    """Tokens (..., n, C) -> those that a table names, (..., k, C).

    Args:
        table: token numbers, flattened here; below `count`, or `count` itself for a position outside the grid.
        count: how many tokens the grid has. With positions outside, `forward` wants one token more (`with_empty`).
    """

    index: Tensor

    def __init__(self, table: Table, count: int) -> None:
        super().__init__()
        self.outside = bool((table == count).any())
        # No weight: it follows from the grid. A network may be built on the meta device; tables are always real.
        self.register_buffer("index", torch.tensor(table.reshape(-1), device="cpu"), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(-2, self.index)


def with_empty(tokens: Tensor, *, needed: bool = True) -> Tensor:
    """`tokens` (..., n, C) with a token of zeros behind them, where one is `needed`."""
    return functional.pad(tokens, (0, 0, 0, 1)) if needed else tokens


def whole_windows(grid: Grid, window: int) -> Grid:
    """Windows below and beside each other that cover `grid`."""
    return math.ceil(grid[0] / window), math.ceil(grid[1] / window)


def numbered(grid: Grid, rows: Table, columns: Table) -> Table:
    """Token numbers at all pairs of `rows` and `columns`, (len(rows), len(columns)); outside `grid` the empty one."""
    # One past the last token: `with_empty` puts a token of zeros there.
    inside = ((rows >= 0) & (rows < grid[0]))[:, None] & ((columns >= 0) & (columns < grid[1]))[None]
    return np.where(inside, rows[:, None] * grid[1] + columns[None], grid[0] * grid[1])


def neighbourhood_table(grid: Grid, windows: Grid, *, step: int, span: int, before: int = 0) -> Table:
    """(windows, span^2): the square of side `span` that begins `before` tokens above and left of each window.

    Args:
        grid: of the tokens.
        windows: how many, below and beside each other.
        step: from one window to the next.
        span: side of the square.
        before: how far it reaches out of the window there.
    """
    offsets = np.arange(span) - before
    squares = [
        numbered(grid, row * step + offsets, column * step + offsets).reshape(-1)
        for row in range(windows[0])
        for column in range(windows[1])
    ]
    return np.stack(squares)


def window_table(grid: Grid, window: int, *, shift: int = 0) -> Table:
    """(windows, window^2): the tokens of each window, the grid padded to whole windows and rolled by `shift`."""
    rows, columns = (count * window for count in whole_windows(grid, window))
    rolled = numbered(grid, (np.arange(rows) + shift) % rows, (np.arange(columns) + shift) % columns)
    tiles = rolled.reshape(rows // window, window, columns // window, window)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, window * window)


def return_table(table: Table, count: int) -> Table:
    """(count,): at which index of the flattened `table` each of `count` tokens stands; it must stand there once."""
    inside = np.flatnonzero(table.reshape(-1) < count)
    result: Table = np.empty(count, dtype=np.int64)
    result[table.reshape(-1)[inside]] = inside
    return result


def region_table(grid: Grid, window: int, *, shift: int) -> Table:
    """(windows, window^2): which of nine regions each position of a rolled grid came from.

    Positions of different regions were no neighbours before the roll and do not see each other.
    """
    sides = [count * window for count in whole_windows(grid, window)]
    # Along one side: 0 before the last window; in the last one, 1 for its own tokens, 2 for those that the roll brought
    # from the other end.
    bands = [(np.arange(side) >= side - window).astype(np.int64) + (np.arange(side) >= side - shift) for side in sides]
    regions = 3 * bands[0][:, None] + bands[1][None]
    tiles = regions.reshape(sides[0] // window, window, sides[1] // window, window)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, window * window)


def pooling_table(window: Grid, samples: int) -> Table:
    """(samples^2, largest): the positions in a window that each bin of adaptive pooling looks at.

    Bins overlap where a side is not divisible (7 to 3: rows 0-2, 2-4, 4-6). A shorter bin names its last position
    again, which a maximum does not notice.
    """
    rows, columns = (_bins(side, samples) for side in window)
    squares = rows[:, None, :, None] * window[1] + columns[None, :, None, :]
    return squares.reshape(samples * samples, -1)


def _bins(side: int, samples: int) -> Table:
    """(samples, longest): the positions of each bin along one side."""
    bins = [range(number * side // samples, math.ceil((number + 1) * side / samples)) for number in range(samples)]
    longest = max(len(one) for one in bins)
    return np.asarray([[*one, *[one[-1]] * (longest - len(one))] for one in bins])


def merging_table(grid: Grid) -> Table:
    """(ceil(rows / 2) * ceil(columns / 2), 4): the tokens that patch merging joins: (0, 0), (1, 0), (0, 1), (1, 1)."""
    squares = neighbourhood_table(grid, whole_windows(grid, 2), step=2, span=2)
    # The source joins a square column by column.
    return squares[:, [0, 2, 1, 3]]


def relative_table(window: int) -> Table:
    """(window^2, window^2): the row of a table of (2 window - 1)^2 biases for every pair of positions in a window."""
    position = np.arange(window * window)
    rows = position[:, None] // window - position[None] // window + window - 1
    columns = position[:, None] % window - position[None] % window + window - 1
    return rows * (2 * window - 1) + columns
