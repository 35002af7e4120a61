"""What the model sees, painted over what the camera saw; and the class map as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.runtime.colors import colored
from dovit_deploy.runtime.lettering import darken, letter_height, readable, text_width, write
from dovit_deploy.runtime.results import RGB, FrameTokens, Palette

BORDER_LIGHT = 0.45
"""How far the line around a region is from its class colour towards white."""


def paint_overlay(rgb: RGB, class_map: npt.NDArray[np.uint8], palette: Palette, *, alpha: float = 0.5) -> RGB:
    """The picture with every class in its colour, and a thin bright line where classes meet.

    Args:
        rgb: (H, W, 3) uint8.
        class_map: (H, W) uint8.
        palette: at least as many colours as classes occur.
        alpha: 0 leaves the picture, 1 shows the colours alone.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        UsageError: alpha outside [0, 1], or a class map of another size.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha {alpha:g} is outside [0, 1]")
    if class_map.shape != rgb.shape[:2]:
        raise UsageError(f"a class map of shape {class_map.shape} does not cover a picture of {rgb.shape[:2]}")
    cv2 = packages.opencv()
    colors = colored(class_map, palette.colors)
    painted = cv2.addWeighted(np.ascontiguousarray(rgb), 1 - alpha, colors, alpha, 0)
    if alpha == 0:
        return np.asarray(painted, dtype=np.uint8)
    bright = cv2.convertScaleAbs(colors, alpha=1 - BORDER_LIGHT, beta=255 * BORDER_LIGHT)
    return np.asarray(cv2.copyTo(bright, _borders(class_map), painted), dtype=np.uint8)


def paint_hud(rgb: RGB, tokens: FrameTokens, *, fps: float | None = None) -> RGB:
    """The picture with a line in its upper left corner: MACs saved, tokens that ran to the end, frame rate."""
    painted = np.array(rgb, copy=True)
    if not readable(rgb):
        return painted
    parts = [f"FLOPs saved {tokens.flops_saved:.0%}", f"tokens {tokens.kept[-1]}/{tokens.total}"]
    if fps is not None:
        parts.append(f"{fps:.1f} fps")
    text, height = "   ".join(parts), letter_height(rgb)
    margin = height // 2
    width = min(text_width(text, height) + 2 * margin, rgb.shape[1] - 2 * margin)
    darken(painted, top=margin, left=margin, height=height + margin, width=width, light=0.35)
    write(painted, text, left=2 * margin, baseline=margin + height, height=height)
    return painted


def save_mask(path: str | Path, class_map: npt.NDArray[np.uint8], palette: Palette) -> None:
    """Write `class_map` (H, W) as an indexed PNG: pixel value = class id, colours from the palette.

    It is written aside and renamed, so that no half file is left and an older one survives a failure.

    Raises:
        UsageError: the name does not end in .png, or the folder is not there.
        EnvironmentProblem: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(f"{target.name}: masks are written as PNG; give a name that ends in .png")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: there is no folder {target.parent}")
    image = packages.pillow().fromarray(np.ascontiguousarray(class_map), mode="P")
    image.putpalette(np.pad(palette.colors.reshape(-1), (0, 768 - palette.colors.size)).tobytes())
    partial = target.with_name(f".{target.name}.partial")
    try:
        image.save(partial, format="PNG")
        partial.replace(target)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _borders(class_map: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Not 0 on both sides of every line between classes: (H, W) uint8."""
    cv2 = packages.opencv()
    return np.asarray(cv2.morphologyEx(class_map, cv2.MORPH_GRADIENT, np.ones((2, 2), dtype=np.uint8)))
