"""The label on the picture: the most probable classes in its lower left corner, each with its probability."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from dovit_deploy.runtime.class_scores import ClassScore
from dovit_deploy.runtime.lettering import darken, letter_height, readable, text_width, write
from dovit_deploy.runtime.results import RGB

LINES = 3
"""Classes that are written, the first of them larger."""
FIRST, OTHERS = 1.5, 1.0
"""Height of a line over the usual height of letters."""
WORTH_SAYING = 0.01
"""A class below this probability is not written, unless it is the first."""


def paint_label(rgb: RGB, classes: Sequence[ClassScore]) -> RGB:
    """The picture with its most probable classes lettered on it; one that is too small to be read from stays as it is.

    Args:
        rgb: (H, W, 3) uint8.
        classes: the most probable first, at least one.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    painted = np.array(rgb, copy=True)
    if not readable(rgb):
        return painted
    shown = [classes[0], *(entry for entry in classes[1:LINES] if entry.probability >= WORTH_SAYING)]
    heights = [round(letter_height(rgb) * (OTHERS if number else FIRST)) for number in range(len(shown))]
    margin = letter_height(rgb) // 2
    room = rgb.shape[1] - 4 * margin
    texts = [_fitting(entry, height, room) for entry, height in zip(shown, heights, strict=True)]
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


def _fitting(entry: ClassScore, height: int, room: int) -> str:
    """Name and probability in at most `room` pixels; a long name loses its end."""
    share, name = f" {entry.probability:.1%}", in_ascii(entry.name)
    if text_width(name + share, height) <= room:
        return name + share
    while name and text_width(f"{name}...{share}", height) > room:
        name = name[:-1]
    return f"{name}...{share}"


def in_ascii(name: str) -> str:
    """A name in the letters that OpenCV's font has: accents are dropped, what remains unknown is a question mark."""
    decomposed = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")
