"""Tables of token numbers against the operations they stand for, on grids of any sides."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from dovit_deploy.families.stvit.windows import (
    GatherRows,
    merging_table,
    neighbourhood_table,
    pooling_table,
    region_table,
    relative_table,
    return_table,
    whole_windows,
    window_table,
    with_empty,
)

quickly = settings(max_examples=60, deadline=None, derandomize=True)
grids = some.tuples(some.integers(1, 17), some.integers(1, 17))


def tokens_of(grid: tuple[int, int]) -> torch.Tensor:
    """(n, 2), no two alike and none zero."""
    count = grid[0] * grid[1]
    return torch.stack([torch.arange(1.0, count + 1), -torch.arange(1.0, count + 1)], 1)


def padded_image(grid: tuple[int, int], window: int) -> torch.Tensor:
    """(rows, columns, 2): the tokens on their grid, zeros up to whole windows."""
    image = tokens_of(grid).reshape(*grid, 2)
    return functional.pad(image, (0, 0, 0, -grid[1] % window, 0, -grid[0] % window))


@quickly
@given(grid=grids, window=some.integers(1, 8), data=some.data())
def test_windows_are_what_rolling_and_reshaping_gives(
    grid: tuple[int, int], window: int, data: some.DataObject
) -> None:
    shift = data.draw(some.integers(0, window - 1))
    image = torch.roll(padded_image(grid, window), (-shift, -shift), (0, 1))
    tiles = image.unflatten(1, (-1, window)).unflatten(0, (-1, window)).permute(0, 2, 1, 3, 4)
    table = window_table(grid, window, shift=shift)
    cut = GatherRows(table, grid[0] * grid[1])(with_empty(tokens_of(grid)))
    assert torch.equal(cut, tiles.reshape(-1, 2))


@quickly
@given(grid=grids, window=some.integers(1, 8), data=some.data())
def test_cutting_and_joining_changes_nothing(grid: tuple[int, int], window: int, data: some.DataObject) -> None:
    count = grid[0] * grid[1]
    table = window_table(grid, window, shift=data.draw(some.integers(0, window - 1)))
    assert sorted(number for number in table.reshape(-1) if number < count) == list(range(count))
    batch = torch.stack([tokens_of(grid), 2 * tokens_of(grid)])
    windows = GatherRows(table, count)(with_empty(batch))
    assert torch.equal(GatherRows(return_table(table, count), table.size)(windows), batch)


@quickly
@given(grid=grids, window=some.integers(2, 6), data=some.data())
def test_regions_are_neighbours_before_the_roll(grid: tuple[int, int], window: int, data: some.DataObject) -> None:
    """Two positions in a window are of one region exactly if they are as far apart as they were before rolling."""
    shift = data.draw(some.integers(1, window - 1))
    rows, columns = (count * window for count in whole_windows(grid, window))
    rolled = window_table((rows, columns), window, shift=shift)
    regions = region_table(grid, window, shift=shift)
    assert rolled.shape == regions.shape
    assert np.array_equal(np.sort(rolled.reshape(-1)), np.arange(rows * columns))
    position = np.arange(window * window)
    for numbers, region in zip(rolled, regions, strict=True):
        steps = [axis[:, None] - axis[None] for axis in (numbers // columns, numbers % columns)]
        inside = [
            position[:, None] // window - position[None] // window,
            position[:, None] % window - position[None] % window,
        ]
        together = (steps[0] == inside[0]) & (steps[1] == inside[1])
        assert np.array_equal(region[:, None] == region[None], together)


@quickly
@given(grid=grids, window=some.integers(1, 7), span=some.integers(1, 12), before=some.integers(0, 6))
def test_neighbourhoods_are_what_unfolding_gives(grid: tuple[int, int], window: int, span: int, before: int) -> None:
    assume(before < span)
    windows = whole_windows(grid, window)
    image = tokens_of(grid).T.reshape(1, 2, *grid)
    after = [(count - 1) * window + span - before - side for count, side in zip(windows, grid, strict=True)]
    image = functional.pad(image, (before, after[1], before, after[0]))
    unfolded = functional.unfold(image, span, stride=window).unflatten(1, (2, span * span))[0].permute(2, 1, 0)
    table = neighbourhood_table(grid, windows, step=window, span=span, before=before)
    assert torch.equal(GatherRows(table, grid[0] * grid[1])(with_empty(tokens_of(grid))), unfolded.reshape(-1, 2))


@quickly
@given(rows=some.integers(1, 15), columns=some.integers(1, 15), samples=some.integers(1, 5))
def test_pooling_is_adaptive_max_pooling(rows: int, columns: int, samples: int) -> None:
    if min(rows, columns) < samples:
        return
    image = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
    wanted = functional.adaptive_max_pool2d(image, samples)[0].flatten(1).T
    pooled = image[0].flatten(1).T[pooling_table((rows, columns), samples)].amax(1)
    assert torch.equal(pooled, wanted)


@quickly
@given(grid=grids)
def test_merging_joins_the_corners_of_every_square(grid: tuple[int, int]) -> None:
    image = padded_image(grid, 2)
    corners = [image[0::2, 0::2], image[1::2, 0::2], image[0::2, 1::2], image[1::2, 1::2]]
    merged = GatherRows(merging_table(grid), grid[0] * grid[1])(with_empty(tokens_of(grid)))
    assert torch.equal(merged.reshape(-1, 8), torch.cat(corners, -1).reshape(-1, 8))


def test_relative_tables_number_every_step_once() -> None:
    table = relative_table(3)
    assert table.shape == (9, 9)
    assert len(np.unique(table)) == 25
    assert table[0, 0] == table[4, 4] == 12
    # Two down and one to the right of the other: (2 + 2) * 5 + 1 + 2.
    assert table[7, 0] == 23
    assert np.array_equal(table + table.T, np.full((9, 9), 24))
