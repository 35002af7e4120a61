"""What the tokens of an image did, as heat over the image in grey, with a bar below that explains it.

The exit map of a model with gates: cold patches were stopped early, hot ones ran to the end. The selection map of a
model that selects a fixed number of tokens, anew each time and each time on a grid of its own, so that a token that
waited may run again: hot is what was selected every time, cold what never was; what the model did not see stays dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.paint import Color, colored, darken, letter_height, readable, text_width, write
from dovit_deploy.runtime.results import FrameTokens, Window
from dovit_deploy.sources.source import RGB

SMALLEST_PATCH = 10
"""Side in pixels of the image below which the lines between patches would hide it."""
RAMP = ((38, 30, 110), (52, 92, 168), (46, 160, 160), (236, 190, 78), (255, 104, 48))
"""From cold to hot; they differ in lightness too."""
HEAT = 0.55
"""Share of the ramp's colour in the painted image."""
UNSEEN_LIGHT = 0.35
"""Brightness of the part of the image that the model did not see."""


@dataclass(frozen=True)
class LegendField:
    """A part of the bar: as wide as `share` (0..1), in the ramp's colour at `level` (0..1), with the first text that
    fits."""

    share: float
    level: float
    texts: tuple[str, ...]


def paint_tokens(rgb: RGB, tokens: FrameTokens, gates: tuple[int, ...], *, legend: bool = True) -> RGB:
    """Where the tokens of an image stopped.

    Where windows overlap, the mean of their exits is shown.

    Args:
        rgb: (H, W, 3) uint8, the image.
        tokens: of that image.
        gates: the layer before which each gate stands; empty for a dense model.
        legend: draw the bar with shares and MACs saved, if the image has room for it.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    painted = paint_heat(rgb, _heat_map(tokens, len(gates), rgb.shape[:2]))
    if len(tokens.windows) == 1:
        _draw_grid(painted, tokens)
    if legend and readable(rgb):
        _draw_legend(painted, tokens, gates)
    return painted


def exit_levels(window: Window, gates: int) -> npt.NDArray[np.uint8]:
    """How many gates each patch of a window passed: (h, w) of 0..gates.

    A dense run has no decisions; all its patches ran to the end.
    """
    keep = window.report.keep
    if keep:
        return np.asarray(np.sum(keep, axis=0), dtype=np.uint8)
    return np.full((1, 1), gates, dtype=np.uint8)


def exit_shares(tokens: FrameTokens, gates: int) -> tuple[float, ...]:
    """The share of all patches that stopped at each gate, and of those that ran to the end; their sum is 1."""
    levels = np.concatenate([exit_levels(window, gates).reshape(-1) for window in tokens.windows])
    return tuple(float(share) for share in np.bincount(levels, minlength=gates + 1) / levels.size)


def _heat_map(tokens: FrameTokens, gates: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """0 (stopped at the first gate) to 255 (ran to the end) for every pixel of the image: (H, W) uint8."""
    cv2 = packages.opencv()
    passed = _mean_over_windows(tokens, lambda window: _at_pixels(exit_levels(window, gates), window, tokens.patch))
    level = np.round(passed * (255 / gates)) if gates else np.full_like(passed, 255)
    # Nearest: a blend would show exits that no gate has.
    return np.asarray(cv2.resize(level.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST))


def _at_pixels(levels: npt.NDArray[np.uint8], window: Window, patch: int) -> npt.NDArray[np.uint8]:
    """Levels (h, w) of patches as levels of the window's pixels; the last patches may reach beyond the border."""
    # A dense run has one level for all patches.
    if levels.shape == (1, 1):
        return np.full((window.height, window.width), levels[0, 0])
    return levels.repeat(patch, axis=0).repeat(patch, axis=1)[: window.height, : window.width]


def _draw_grid(painted: RGB, tokens: FrameTokens) -> None:
    """Thin lines between patches, if these are large enough in the image."""
    scales = [painted.shape[axis] / tokens.input_size[axis] for axis in (0, 1)]
    if tokens.patch * min(scales) < SMALLEST_PATCH:
        return
    for axis, scale in enumerate(scales):
        edges = np.arange(tokens.patch, tokens.input_size[axis], tokens.patch) * scale
        lines = np.minimum(edges.astype(np.intp), painted.shape[axis] - 1)
        rows = painted if axis == 0 else painted.transpose(1, 0, 2)
        # An eighth darker, whatever the colour below.
        rows[lines] = rows[lines] // 8 * 7


def _draw_legend(painted: RGB, tokens: FrameTokens, gates: tuple[int, ...]) -> None:
    """A bar across the bottom: one field per exit, as wide as its share, then the MACs saved."""
    fields = []
    for number, share in enumerate(exit_shares(tokens, len(gates))):
        names = ("ran to the end", "to the end") if number == len(gates) else _gate_names(gates[number])
        texts = *(f"{name}: {share:.0%}" for name in names), f"{share:.0%}"
        fields.append(LegendField(share, number / len(gates) if gates else 1.0, texts))
    draw_legend(painted, fields, f"FLOPs saved {tokens.flops_saved:.0%}")


def _gate_names(layer: int) -> tuple[str, str]:
    return f"stopped before layer {layer}", f"before {layer}"


def paint_selections(rgb: RGB, tokens: FrameTokens, *, legend: bool = True) -> RGB:
    """How often each part of the image was selected to run.

    Args:
        rgb: (H, W, 3) uint8, the image.
        tokens: of that image.
        legend: draw the bar with shares, tokens and MACs saved, if the image has room for it.

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
    return _mean_over_windows(tokens, _window_shares)


def _window_shares(window: Window) -> npt.NDArray[np.float32]:
    keep = window.report.keep
    # Everything ran.
    if not keep:
        return np.ones((window.height, window.width), dtype=np.float32)
    grids = [_stretched(grid, (window.height, window.width)) for grid in keep]
    return np.asarray(np.mean(grids, axis=0), dtype=np.float32)


def _stretched(grid: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A grid (h, w) over all pixels of a window."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(size, grid.shape, strict=True))
    return np.asarray(grid[rows[:, None], columns[None, :]])


def _view(tokens: FrameTokens, image: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the image that the model saw, at least one of each."""
    region = tokens.region
    if region is None:
        return slice(0, image[0]), slice(0, image[1])
    return _span(region.top, region.height, image[0]), _span(region.left, region.width, image[1])


def _span(start: float, length: float, whole: int) -> slice:
    # A view thinner than a pixel still shows one.
    first = min(round(start), whole - 1)
    return slice(first, max(first + 1, min(round(start + length), whole)))


def _fields(tokens: FrameTokens) -> list[LegendField]:
    """A field for each number of selections, as wide as the share of the input that was selected so often."""
    most = max((len(window.report.keep) for window in tokens.windows), default=0)
    if not most:
        return []
    times = np.round(selected_shares(tokens) * most).astype(np.intp)
    shares = np.bincount(times.reshape(-1), minlength=most + 1) / times.size
    return [
        LegendField(
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


def _mean_over_windows(tokens: FrameTokens, values: Callable[[Window], npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """`values` (height, width) of each window, averaged where windows overlap: (h, w) float32 of the model's input."""
    total = np.zeros(tokens.input_size, dtype=np.float32)
    count = np.zeros(tokens.input_size, dtype=np.float32)
    for window in tokens.windows:
        inside = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        total[inside] += values(window)
        count[inside] += 1
    # Windows cover the whole input; the 1 only guards an input that no window saw.
    return np.asarray(total / np.maximum(count, 1), dtype=np.float32)


def paint_heat(rgb: RGB, level: npt.NDArray[np.uint8]) -> RGB:
    """The image in grey under the ramp's colours at `level` (H, W) uint8; a new array."""
    cv2 = packages.opencv()
    heat = colored(level, _ramp())
    grey = cv2.cvtColor(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    painted: RGB = cv2.addWeighted(grey, 1 - HEAT, heat, HEAT, 0)
    return painted


def draw_legend(painted: RGB, fields: Sequence[LegendField], *notes: str) -> None:
    """A bar across the bottom of `painted` itself: the fields, and right of them the first note that leaves them room.

    Of several notes the longest comes first.
    """
    line = letter_height(painted)
    height, margin = 2 * line, line // 2
    top = painted.shape[0] - height
    darken(painted, top=top, left=0, height=height, width=painted.shape[1], light=0.25)
    baseline = top + line + line // 3
    # Without fields the note has the whole bar; beside some it leaves them two fifths.
    most = painted.shape[1] * (0.6 if fields else 1.0) - 3 * margin
    note = next((text for text in notes if text_width(text, line) <= most), notes[-1])
    room = painted.shape[1] - text_width(note, line) - 3 * margin
    write(painted, note, left=max(room + 2 * margin, margin), baseline=baseline, height=line)
    left = margin
    for field in fields:
        right = left + round(field.share * (room - margin))
        painted[top + margin // 2 : top + height - margin // 2, left:right] = _color(field.level)
        _write_inside(painted, *field.texts, field=(left, right), baseline=baseline)
        left = right


def _ramp() -> npt.NDArray[np.uint8]:
    """The ramp in 256 steps: (256, 3) uint8."""
    stops = np.linspace(0, 255, len(RAMP))
    channels = [np.interp(np.arange(256), stops, channel) for channel in np.array(RAMP).T]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _color(level: float) -> Color:
    red, green, blue = (int(value) for value in _ramp()[int(255 * level)])
    return red, green, blue


def _write_inside(painted: RGB, *texts: str, field: tuple[int, int], baseline: int) -> None:
    """Write the first of `texts` that fits between the columns of `field`."""
    line = letter_height(painted)
    for text in texts:
        if text_width(text, line) + line // 2 <= field[1] - field[0]:
            write(painted, text, left=field[0] + line // 4, baseline=baseline, height=line)
            return
