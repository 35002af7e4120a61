"""What the tokens of an image did, as heat over the image in grey, with a key below the image that names every colour.

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
from dovit_deploy.runtime.lettering import Color, letter_height, text_width, write
from dovit_deploy.runtime.paint import colored
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


NARROWEST_KEY = 48
"""Width in pixels of an image below which its key could not be read."""
KEY_BACKGROUND = 24
"""Grey level behind the key."""
MOST_KEY_ROWS = (2, 5, 100)
"""Rows of labels up to which the long, the shorter and the shortest names are used."""


@dataclass(frozen=True)
class KeyField:
    """A colour of the map and what it stands for: `share` (0..1) of the image, `level` (0..1) of the ramp, its name in
    a long, a shorter and a shortest form."""

    share: float
    level: float
    names: tuple[str, str, str]


def paint_tokens(rgb: RGB, tokens: FrameTokens, gates: tuple[int, ...], *, legend: bool = True) -> RGB:
    """Where the tokens of an image stopped.

    Where windows overlap, the mean of their exits is shown.

    Args:
        rgb: (H, W, 3) uint8, the image.
        tokens: of that image.
        gates: the layer before which each gate stands; empty for a dense model.
        legend: add the key below the image: every stage by name, with its share, and the MACs saved.

    Returns:
        (H, W, 3) uint8, a new array; with the key (H + its height, W, 3), the same for all images of one size.
    """
    painted = paint_heat(rgb, _heat_map(tokens, len(gates), rgb.shape[:2]))
    if len(tokens.windows) == 1:
        _draw_grid(painted, tokens)
    return with_key(painted, _exit_fields(tokens, gates), tokens.flops_saved) if legend else painted


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
    passed = _mean_over_windows(tokens, lambda window: _at_pixels(exit_levels(window, gates), window, tokens))
    level = np.round(passed * (255 / gates)) if gates else np.full_like(passed, 255)
    # Nearest: a blend would show exits that no gate has.
    return np.asarray(cv2.resize(level.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST))


def _at_pixels(levels: npt.NDArray[np.uint8], window: Window, tokens: FrameTokens) -> npt.NDArray[np.uint8]:
    """Levels (h, w) of patches as levels of the window's pixels; patches may reach beyond the borders."""
    # A dense run has one level for all patches.
    if levels.shape == (1, 1):
        return np.full((window.height, window.width), levels[0, 0])
    (top, left), patch = tokens.pads, tokens.patch
    fine = levels.repeat(patch, axis=0).repeat(patch, axis=1)
    return fine[top : top + window.height, left : left + window.width]


def _draw_grid(painted: RGB, tokens: FrameTokens) -> None:
    """Thin lines between patches, if these are large enough in the image."""
    scales = [painted.shape[axis] / tokens.input_size[axis] for axis in (0, 1)]
    if tokens.patch * min(scales) < SMALLEST_PATCH:
        return
    for axis, scale in enumerate(scales):
        first = tokens.patch - tokens.pads[axis]
        edges = np.arange(first, tokens.input_size[axis], tokens.patch) * scale
        lines = np.minimum(edges.astype(np.intp), painted.shape[axis] - 1)
        rows = painted if axis == 0 else painted.transpose(1, 0, 2)
        # An eighth darker, whatever the colour below.
        rows[lines] = rows[lines] // 8 * 7


def _exit_fields(tokens: FrameTokens, gates: tuple[int, ...]) -> list[KeyField]:
    """A field for each exit, from the first gate to the end."""
    shares = exit_shares(tokens, len(gates))
    fields = [
        KeyField(share, number / len(gates), (f"stopped before layer {layer}", f"before layer {layer}", f"<{layer}"))
        for number, (share, layer) in enumerate(zip(shares[:-1], gates, strict=True))
    ]
    return [*fields, KeyField(shares[-1], 1.0, ("ran to the end", "to the end", "end"))]


def exit_key(tokens: FrameTokens, gates: tuple[int, ...]) -> tuple[tuple[str, Color], ...]:
    """What the colours of `paint_tokens` stand for, cold first."""
    return tuple((field.names[0], _color(field.level)) for field in _exit_fields(tokens, gates))


def selection_key(tokens: FrameTokens) -> tuple[tuple[str, Color], ...]:
    """What the colours of `paint_selections` stand for, cold first."""
    return tuple((field.names[0], _color(field.level)) for field in _selection_fields(tokens))


def paint_selections(rgb: RGB, tokens: FrameTokens, *, legend: bool = True) -> RGB:
    """How often each part of the image was selected to run.

    Args:
        rgb: (H, W, 3) uint8, the image.
        tokens: of that image.
        legend: add the key below the image: every number of selections, with its share, tokens and MACs saved.

    Returns:
        (H, W, 3) uint8, a new array; with the key (H + its height, W, 3), the same for all images of one size.
    """
    cv2 = packages.opencv()
    rows, columns = _view(tokens, (rgb.shape[0], rgb.shape[1]))
    painted = np.asarray(cv2.convertScaleAbs(np.ascontiguousarray(rgb), alpha=UNSEEN_LIGHT), dtype=np.uint8)
    inside = rgb[rows, columns]
    level = np.round(selected_shares(tokens) * 255).astype(np.uint8)
    stretched = cv2.resize(level, (inside.shape[1], inside.shape[0]), interpolation=cv2.INTER_NEAREST)
    painted[rows, columns] = paint_heat(inside, np.asarray(stretched, dtype=np.uint8))
    return with_key(painted, _selection_fields(tokens), tokens.flops_saved, counts=tokens.kept) if legend else painted


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


def _selection_fields(tokens: FrameTokens) -> list[KeyField]:
    """A field for each number of selections, with the share of the input that was selected so often."""
    most = max((len(window.report.keep) for window in tokens.windows), default=0)
    if not most:
        return [KeyField(1.0, 1.0, ("not selected: all tokens ran", "all tokens ran", "all"))]
    times = np.round(selected_shares(tokens) * most).astype(np.intp)
    shares = np.bincount(times.reshape(-1), minlength=most + 1) / times.size
    return [
        KeyField(
            float(share), number / most, (f"selected {number} of {most}", f"{number} of {most}", f"{number}/{most}")
        )
        for number, share in enumerate(shares)
    ]


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


def with_key(painted: RGB, fields: Sequence[KeyField], saved: float, *, counts: Sequence[int] = ()) -> RGB:
    """The image with a key below it: a bar of the fields, as wide as their shares, then every field by name.

    Args:
        painted: (H, W, 3) uint8; as it is where it is too narrow for a key.
        fields: at least one.
        saved: fraction of the dense FLOPs.
        counts: tokens that entered each stage, to be shown too.
    """
    width = painted.shape[1]
    if width < NARROWEST_KEY:
        return painted
    # Outside of the image there is room for letters however flat it is.
    line = max(letter_height(painted), min(12, width // 7))
    margin = line // 2
    labels, rows = _key_rows(fields, saved, counts, line=line, room=width - 2 * margin)
    pitch = line + margin
    key = np.full((line + pitch * rows + 3 * margin, width, 3), KEY_BACKGROUND, dtype=np.uint8)
    _draw_bar(key[margin : margin + line, margin : width - margin], fields)
    for label in labels:
        baseline = line + 2 * margin + pitch * label.row + line
        start = margin + label.left
        if label.level is not None:
            key[baseline - round(0.7 * line) : baseline, start : start + round(0.7 * line)] = _color(label.level)
            start += line
        write(key, label.text, left=start, baseline=baseline, height=line)
    return np.concatenate([painted, key])


def _draw_bar(bar: RGB, fields: Sequence[KeyField]) -> None:
    """Fill `bar` itself with the fields' colours."""
    ends = np.round(np.cumsum([field.share for field in fields]) * bar.shape[1]).astype(int).tolist()
    for field, left, right in zip(fields, [0, *ends], ends, strict=False):
        bar[:, left:right] = _color(field.level)


@dataclass(frozen=True)
class _KeyLabel:
    """A text of the key, `left` pixels from its margin in row `row`; behind the colour at `level`, if any."""

    text: str
    level: float | None
    row: int
    left: int


def _key_rows(
    fields: Sequence[KeyField], saved: float, counts: Sequence[int], *, line: int, room: int
) -> tuple[list[_KeyLabel], int]:
    """The labels where they stand, with the longest names that need few rows, and the number of rows."""
    for form, most in enumerate(MOST_KEY_ROWS):
        labels, rows, fits = _flowed(_key_texts(fields, saved, counts, form=form), line=line, room=room)
        if fits and rows <= most:
            break
    return labels, rows


def _key_texts(
    fields: Sequence[KeyField], saved: float, counts: Sequence[int], *, form: int
) -> list[tuple[str, str, float | None]]:
    """Every text, the widest that it may become in another image of the model, and its colour."""
    colon = ":" if form < 2 else ""
    texts: list[tuple[str, str, float | None]] = [
        (f"{field.names[form]}{colon} {field.share:.0%}", f"{field.names[form]}{colon} 100%", field.level)
        for field in fields
    ]
    note = ("FLOPs saved", "FLOPs saved", "saved")[form]
    texts.append((f"{note} {saved:z.0%}", f"{note} 100%", None))
    if counts:
        steps = " -> ".join(map(str, counts if form == 0 else (counts[0], counts[-1])))
        texts.append((f"tokens {steps}", f"tokens {steps}", None))
    return texts


def _flowed(
    texts: Sequence[tuple[str, str, float | None]], *, line: int, room: int
) -> tuple[list[_KeyLabel], int, bool]:
    """The texts one behind the other, each where the widest ones leave it; the number of rows; whether all fit."""
    labels: list[_KeyLabel] = []
    row = left = 0
    fits = True
    for text, widest, level in texts:
        width = text_width(widest, line) + (line if level is not None else 0)
        if left and left + width > room:
            row, left = row + 1, 0
        labels.append(_KeyLabel(text, level, row, left))
        left += width + line
        fits = fits and width <= room
    return labels, row + 1, fits


def _ramp() -> npt.NDArray[np.uint8]:
    """The ramp in 256 steps: (256, 3) uint8."""
    stops = np.linspace(0, 255, len(RAMP))
    channels = [np.interp(np.arange(256), stops, channel) for channel in np.array(RAMP).T]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _color(level: float) -> Color:
    red, green, blue = (int(value) for value in _ramp()[int(255 * level)])
    return red, green, blue
