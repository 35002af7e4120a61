"""The exit map: where tokens stopped, as heat over a grey picture. Cold patches were settled early, hot ones ran to
the end; the bar below gives the share of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.heat import Field, draw_legend, paint_heat
from dovit_deploy.runtime.lettering import readable
from dovit_deploy.runtime.results import RGB, FrameTokens, Window

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
    fields = []
    for number, share in enumerate(exit_shares(tokens, len(gates))):
        names = ("ran to the end", "to the end") if number == len(gates) else _gate_names(gates[number])
        texts = *(f"{name}: {share:.0%}" for name in names), f"{share:.0%}"
        fields.append(Field(share, number / len(gates) if gates else 1.0, texts))
    draw_legend(painted, fields, f"FLOPs saved {tokens.flops_saved:.0%}")


def _gate_names(layer: int) -> tuple[str, str]:
    return f"stopped before layer {layer}", f"before {layer}"
