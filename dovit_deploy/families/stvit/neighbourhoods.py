"""Which tokens around a window its queries look at in STViT-R's backbone, and which of them are hidden as padding."""

from __future__ import annotations

import numpy as np

from dovit_deploy.families.stvit.attention import PaddingMask, Placement
from dovit_deploy.families.stvit.spec import REDUCED_STAGE, SAMPLES, StvitBackboneSpec, StvitSegmenterSpec
from dovit_deploy.families.stvit.windows import (
    Grid,
    Rows,
    Table,
    neighbourhood_table,
    return_table,
    whole_windows,
    window_table,
)

AnySize = StvitBackboneSpec | StvitSegmenterSpec


def pooling_placement(spec: AnySize, span: int) -> Placement:
    """Semantic tokens, window after window, over the squares of image tokens around their windows."""
    grid = spec.stage_grid(REDUCED_STAGE)
    windows = whole_windows(grid, spec.window)
    before = (span - spec.window) // 2
    table = neighbourhood_table(grid, windows, step=spec.window, span=span, before=before)
    whole = windows[0] * spec.window, windows[1] * spec.window
    cut = neighbourhood_table(whole, windows, step=spec.window, span=span, before=before)
    mask = padding_mask(spec, table == grid[0] * grid[1], cut, whole)
    return Placement(len(table), keys=Rows(table, grid[0] * grid[1]), mask=mask)


def recovery_placement(spec: AnySize) -> Placement:
    """Image tokens, in windows, over the squares of semantic tokens around their windows."""
    grid, semantic = spec.stage_grid(REDUCED_STAGE), spec.semantic_grid
    count, span = grid[0] * grid[1], spec.recovery_neighbourhood
    queries = window_table(grid, spec.window)
    before = (span - SAMPLES) // 2
    table = neighbourhood_table(semantic, whole_windows(grid, spec.window), step=SAMPLES, span=span, before=before)
    mask = padding_mask(spec, table == spec.semantic_tokens, table, semantic)
    return Placement(
        len(table),
        # What is asked outside the grid is never read; any token serves.
        queries=Rows(np.where(queries == count, 0, queries), count),
        keys=Rows(table, spec.semantic_tokens),
        join=Rows(return_table(queries, count), queries.size),
        mask=mask,
    )


def padding_mask(spec: AnySize, outside: Table, cut: Table, whole: Grid) -> PaddingMask | None:
    """The mask that `spec.padding_mask` asks for; None where it would change nothing.

    Args:
        spec: the architecture.
        outside: (windows, span^2) bool, no token lies there.
        cut: (windows, span^2), the same places as numbers on the grid `whole`.
        whole: the grid that the source's mask is drawn on; what lies beyond it is hidden.
    """
    if spec.padding_mask == "none":
        return None
    hidden = outside
    if spec.padding_mask == "released":
        rows, columns = spec.stage_grid(REDUCED_STAGE)
        corner = released_corner(whole, (-rows % spec.window, -columns % spec.window))
        hidden = np.append(corner.reshape(-1), True)[cut]
    # A softmax does not see a constant.
    return PaddingMask(hidden) if hidden.any() and not hidden.all() else None


def released_corner(grid: Grid, padding: Grid) -> Table:
    """(rows, columns) bool: what the released code hides of `grid`.

    It means the `padding` below and on the right, counted in image tokens whatever `grid` is of, but cuts it out with
    slices from the end. So two padded sides hide only their common corner, one padded side hides its strip, and with
    none padded, where a slice from -0 is everything, all is hidden.
    """
    corner: Table = np.zeros(grid, dtype=bool)
    corner[-padding[0] :, -padding[1] :] = True
    return corner
