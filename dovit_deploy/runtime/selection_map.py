"""The selection map: how often each part of a picture was selected to run, where the number of tokens is fixed.

Such a model selects anew at each of its selections, each on a grid of its own, so a token that waited may run again.
Hot is what was selected every time, cold what never was; what the model did not see stays dark.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.heat import Field, draw_legend, paint_heat
from dovit_deploy.runtime.lettering import readable
from dovit_deploy.runtime.results import RGB, FrameTokens, Window

UNSEEN_LIGHT = 0.35
"""Brightness of what lies outside the model's view."""

Levels = npt.NDArray[np.uint8]


def paint_selections(rgb: RGB, tokens: FrameTokens, *, legend: bool = True) -> RGB:
    """How often each part of the picture was selected to run.

    Args:
        rgb: (H, W, 3) uint8, the picture.
        tokens: of that picture.
        legend: draw the bar with shares, tokens and MACs saved, if the picture has room for it.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    cv2 = packages.opencv()
    rows, columns = _view(tokens, (rgb.shape[0], rgb.shape[1]))
    painted = np.asarray(cv2.convertScaleAbs(np.ascontiguousarray(rgb), alpha=UNSEEN_LIGHT), dtype=np.uint8)
    inside = rgb[rows, columns]
    level = np.round(selected_shares(tokens) * 255).astype(np.uint8)
    stretched = cv2.resize(level, (inside.shape[1], inside.shape[0]), interpolation=cv2.INTER_NEAREST)
    painted[rows, columns] = paint_heat(inside, np.asarray(stretched, dtype=np.uint8))
    if legend and readable(rgb):
        draw_legend(painted, _fields(tokens), *_notes(tokens))
    return painted


def selected_shares(tokens: FrameTokens) -> npt.NDArray[np.float32]:
    """The share of the selections that took each pixel of the model's input: (h, w), 0..1.

    Without selections (a dense run, or a model that pools its tokens) everything ran, so all is 1. Where windows
    overlap, their mean.
    """
    total = np.zeros(tokens.input_size, dtype=np.float32)
    count = np.zeros(tokens.input_size, dtype=np.float32)
    for window in tokens.windows:
        place = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        total[place] += _window_shares(window)
        count[place] += 1
    return np.asarray(total / np.maximum(count, 1), dtype=np.float32)


def _window_shares(window: Window) -> npt.NDArray[np.float32]:
    keep = window.report.keep
    if not keep:
        return np.ones((window.height, window.width), dtype=np.float32)
    grids = [_stretched(grid, (window.height, window.width)) for grid in keep]
    return np.asarray(np.mean(grids, axis=0), dtype=np.float32)


def _stretched(grid: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A grid (h, w) over all pixels of a window."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(size, grid.shape, strict=True))
    return np.asarray(grid[rows[:, None], columns[None, :]])


def _view(tokens: FrameTokens, picture: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the picture that the model saw, at least one of each."""
    region = tokens.region
    if region is None:
        return slice(0, picture[0]), slice(0, picture[1])
    return _span(region.top, region.height, picture[0]), _span(region.left, region.width, picture[1])


def _span(start: float, length: float, whole: int) -> slice:
    first = min(round(start), whole - 1)
    return slice(first, max(first + 1, min(round(start + length), whole)))


def _fields(tokens: FrameTokens) -> list[Field]:
    """A field for each number of selections, as wide as the share of the input that was selected so often."""
    most = max((len(window.report.keep) for window in tokens.windows), default=0)
    if not most:
        return []
    times = np.round(selected_shares(tokens) * most).astype(np.intp)
    shares = np.bincount(times.reshape(-1), minlength=most + 1) / times.size
    return [
        Field(
            float(share), number / most, (f"selected {number} of {most}: {share:.0%}", f"{number}/{most}: {share:.0%}")
        )
        for number, share in enumerate(shares)
        if share
    ]


def _notes(tokens: FrameTokens) -> tuple[str, str, str]:
    saved = f"FLOPs saved {tokens.flops_saved:.0%}"
    steps = [str(count) for count in tokens.kept]
    return (
        f"tokens {' -> '.join(steps)}   {saved}",
        f"tokens {steps[0]} -> {steps[-1]}   {saved}",
        saved,
    )
