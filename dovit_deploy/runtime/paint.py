"""Answers painted over images, and the class map as a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.files import file_written_aside
from dovit_deploy.runtime.lettering import darken, drawable, fitting_text, letter_height, readable, text_width, write
from dovit_deploy.runtime.results import ClassScore, Palette
from dovit_deploy.sources.source import RGB

BORDER_LIGHT = 0.45
"""How far the line around a region is from its class colour towards white."""
LABEL_LINES = 3
"""Classes that are written, the first of them larger."""
FIRST, OTHERS = 1.5, 1.0
"""Height of a line over the usual height of letters."""
WORTH_SAYING = 0.01
"""A class below this probability is not written, unless it is the first."""


def paint_overlay(rgb: RGB, class_map: npt.NDArray[np.uint8], palette: Palette, *, alpha: float = 0.5) -> RGB:
    """The image with every class in its colour, and a thin bright line where classes meet.

    Args:
        rgb: (H, W, 3) uint8.
        class_map: (H, W) uint8.
        palette: at least as many colours as classes occur.
        alpha: 0 leaves the image, 1 shows the colours alone.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        UsageError: alpha outside [0, 1], or a class map of another size.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha {alpha:g} is outside [0, 1]")
    if class_map.shape != rgb.shape[:2]:
        raise UsageError(f"a class map of shape {class_map.shape} does not cover an image of {rgb.shape[:2]}")
    cv2 = packages.opencv()
    colors = colored(class_map, palette.colors)
    painted = cv2.addWeighted(np.ascontiguousarray(rgb), 1 - alpha, colors, alpha, 0)
    # Without colours there is nothing for a border to separate.
    if alpha == 0:
        return np.asarray(painted, dtype=np.uint8)
    # alpha and beta together mix the class colour with white.
    bright = cv2.convertScaleAbs(colors, alpha=1 - BORDER_LIGHT, beta=255 * BORDER_LIGHT)
    return np.asarray(cv2.copyTo(bright, _borders(class_map), painted), dtype=np.uint8)


def paint_label(rgb: RGB, classes: Sequence[ClassScore]) -> RGB:
    """The image with its most probable classes lettered on it; one that is too small to be read from stays as it is.

    Args:
        rgb: (H, W, 3) uint8.
        classes: the most probable first, at least one.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    painted = np.array(rgb, copy=True)
    if not readable(rgb):
        return painted
    shown = [classes[0], *(entry for entry in classes[1:LABEL_LINES] if entry.probability >= WORTH_SAYING)]
    heights = [round(letter_height(rgb) * (OTHERS if number else FIRST)) for number in range(len(shown))]
    margin = letter_height(rgb) // 2
    room = rgb.shape[1] - 4 * margin
    texts = [
        fitting_text(drawable(entry.name, otherwise=f"class {entry.id}"), height, room, end=f" {entry.probability:.1%}")
        for entry, height in zip(shown, heights, strict=True)
    ]
    width = max(text_width(text, height) for text, height in zip(texts, heights, strict=True))
    height = sum(heights) + margin * len(shown)
    top = painted.shape[0] - height - margin
    darken(painted, top=top, left=margin, height=height, width=width + 2 * margin, light=0.35)
    baseline = top
    for text, line in zip(texts, heights, strict=True):
        baseline += line + margin // 2
        write(painted, text, left=2 * margin, baseline=baseline, height=line)
        baseline += margin - margin // 2
    return painted


def save_mask(path: str | Path, class_map: npt.NDArray[np.uint8], palette: Palette) -> None:
    """Write `class_map` (H, W) as an indexed PNG: pixel value = class id, colours from the palette.

    It is written aside and renamed, so that no half file is left and an older one survives a failure.

    Raises:
        UsageError: the name does not end in .png, or the folder is not there.
        OutputFailed: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(f"{target.name}: masks are written as PNG; give a name that ends in .png")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: there is no folder {target.parent}")
    write_image(target, png_from_mask(class_map, palette))


def png_from_mask(class_map: npt.NDArray[np.uint8], palette: Palette) -> bytes:
    """`class_map` (H, W) as the content of an indexed PNG: pixel value = class id, colours from the palette."""
    image = packages.pillow().fromarray(np.ascontiguousarray(class_map), mode="P")
    # Padded to 256 colours of 3 bytes, the whole palette of an indexed PNG.
    image.putpalette(np.pad(palette.colors.reshape(-1), (0, 768 - palette.colors.size)).tobytes())
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def save_image(path: Path, rgb: RGB) -> None:
    """Write `rgb` (H, W, 3) uint8 to `path` as a PNG, fast rather than small: to be looked at, not archived.

    Raises:
        OutputFailed: the file cannot be written.
    """
    write_image(path, png_from_rgb(rgb))


def write_image(path: Path, content: bytes) -> None:
    """Write the `content` of an image file; an older one survives a failure.

    Raises:
        OutputFailed: it cannot be written.
    """
    with file_written_aside(path) as aside:
        aside.write_bytes(content)


def png_from_rgb(rgb: RGB) -> bytes:
    """`rgb` (H, W, 3) uint8 as the content of a PNG; raises EnvironmentProblem when OpenCV cannot encode it."""
    cv2 = packages.opencv()
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    # One filter for all rows: trying each of them on every row makes files no smaller, and takes half as long again.
    # OpenCV before 4.12 has no choice.
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise EnvironmentProblem(f"OpenCV cannot encode an image of {rgb.shape[1]}x{rgb.shape[0]} as PNG")
    return bytes(encoded.tobytes())


def colored(numbers: npt.NDArray[np.uint8], table: npt.NDArray[np.uint8]) -> RGB:
    """The colour of every number, by one look-up of packed pixels instead of one per channel.

    Args:
        numbers: (H, W) uint8.
        table: (n, 3) uint8, n at most 256; any number beyond it is black.

    Returns:
        (H, W, 3) uint8.
    """
    cv2 = packages.opencv()
    packed = np.zeros((256, 4), dtype=np.uint8)
    packed[: len(table), :3] = table
    # OpenCV looks up whole int32 values in a third of the time that three channels take.
    pixels = cv2.LUT(np.ascontiguousarray(numbers), packed.view(np.int32)[:, 0])
    return np.asarray(cv2.cvtColor(pixels.view(np.uint8).reshape(*numbers.shape, 4), cv2.COLOR_RGBA2RGB))


def _borders(class_map: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Not 0 on both sides of every line between classes: (H, W) uint8."""
    cv2 = packages.opencv()
    return np.asarray(cv2.morphologyEx(class_map, cv2.MORPH_GRADIENT, np.ones((2, 2), dtype=np.uint8)))
