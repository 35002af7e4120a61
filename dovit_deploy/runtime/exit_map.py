"""The exit map: where tokens stopped, as heat over a grey picture. Cold patches were settled early, hot ones ran to
the end; the bar below gives the share of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.colors import colored
from dovit_deploy.runtime.lettering import darken, letter_height, readable, text_width, write
from dovit_deploy.runtime.results import RGB, FrameTokens, Window

RAMP = ((38, 30, 110), (52, 92, 168), (46, 160, 160), (236, 190, 78), (255, 104, 48))
"""From a token that stopped at the first gate to one that ran to the end; lightness tells them apart too."""
HEAT = 0.55
"""Share of the ramp's colour in the painted picture."""
SMALLEST_PATCH = 10
"""Side in pixels of the picture below which the lines between patches would hide it."""


def paint_tokens(rgb: RGB, tokens: FrameTokens, gates: tuple[int, ...], *, legend: bool = True) -> RGB:
    """Where the tokens of a picture stopped.

    Where windows overlap, the mean of their exits is shown.

    Args:
        rgb: (H, W, 3) uint8, the picture.
        tokens: of that picture.
        gates: the layer before which each gate stands; empty for a dense model.
        legend: draw the bar with shares and MACs saved, if the picture has room for it.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    cv2 = packages.opencv()
    heat = colored(_heat_map(tokens, len(gates), rgb.shape[:2]), _ramp())
    grey = cv2.cvtColor(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    painted: RGB = cv2.addWeighted(grey, 1 - HEAT, heat, HEAT, 0)
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
    """0 (stopped at the first gate) to 255 (ran to the end) for every pixel of the picture: (H, W) uint8."""
    cv2 = packages.opencv()
    total = np.zeros(tokens.input_size, dtype=np.float32)
    count = np.zeros(tokens.input_size, dtype=np.float32)
    for window in tokens.windows:
        place = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        total[place] += _at_pixels(exit_levels(window, gates), window, tokens.patch)
        count[place] += 1
    level = np.round(total / np.maximum(count, 1) * (255 / max(gates, 1))) if gates else np.full_like(total, 255)
    return np.asarray(cv2.resize(level.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST))


def _at_pixels(levels: npt.NDArray[np.uint8], window: Window, patch: int) -> npt.NDArray[np.uint8]:
    """Levels (h, w) of patches as levels of the window's pixels; the last patches may reach beyond the border."""
    if levels.shape == (1, 1):
        return np.full((window.height, window.width), levels[0, 0])
    return levels.repeat(patch, axis=0).repeat(patch, axis=1)[: window.height, : window.width]


def _ramp() -> npt.NDArray[np.uint8]:
    """The ramp in 256 steps: (256, 3) uint8."""
    stops = np.linspace(0, 255, len(RAMP))
    channels = [np.interp(np.arange(256), stops, channel) for channel in np.array(RAMP).T]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _draw_grid(painted: RGB, tokens: FrameTokens) -> None:
    """Thin lines between patches, if these are large enough in the picture."""
    for axis in (0, 1):
        scale = painted.shape[axis] / tokens.input_size[axis]
        if tokens.patch * scale < SMALLEST_PATCH:
            return
    for axis in (0, 1):
        scale = painted.shape[axis] / tokens.input_size[axis]
        edges = np.arange(tokens.patch, tokens.input_size[axis], tokens.patch) * scale
        lines = np.minimum(edges.astype(np.intp), painted.shape[axis] - 1)
        rows = painted if axis == 0 else painted.transpose(1, 0, 2)
        rows[lines] = rows[lines] // 8 * 7


def _draw_legend(painted: RGB, tokens: FrameTokens, gates: tuple[int, ...]) -> None:
    """A bar across the bottom: one field per exit, as wide as its share, then the MACs saved."""
    line = letter_height(painted)
    height, margin = 2 * line, line // 2
    top = painted.shape[0] - height
    darken(painted, top=top, left=0, height=height, width=painted.shape[1], light=0.25)
    baseline = top + line + line // 3
    saved = f"FLOPs saved {tokens.flops_saved:.0%}"
    room = painted.shape[1] - text_width(saved, line) - 3 * margin
    write(painted, saved, left=room + 2 * margin, baseline=baseline, height=line)
    left = margin
    for number, share in enumerate(exit_shares(tokens, len(gates))):
        right = left + round(share * (room - margin))
        color = _ramp()[255 * number // len(gates) if gates else 255]
        painted[top + margin // 2 : top + height - margin // 2, left:right] = color
        names = ("ran to the end", "to the end") if number == len(gates) else _gate_names(gates[number])
        texts = [*(f"{name}: {share:.0%}" for name in names), f"{share:.0%}"]
        _write_inside(painted, *texts, field=(left, right), baseline=baseline)
        left = right


def _gate_names(layer: int) -> tuple[str, str]:
    return f"stopped before layer {layer}", f"before {layer}"


def _write_inside(painted: RGB, *texts: str, field: tuple[int, int], baseline: int) -> None:
    """Write the first of `texts` that fits between the columns of `field`."""
    line = letter_height(painted)
    for text in texts:
        if text_width(text, line) + line // 2 <= field[1] - field[0]:
            write(painted, text, left=field[0] + line // 4, baseline=baseline, height=line)
            return
