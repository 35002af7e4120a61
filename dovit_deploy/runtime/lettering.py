"""How are letters put on an image? In a size that follows it; every text is drawn once and copied from then on.

A video shows the same few texts in every frame, and drawing letters costs more than all other painting.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.sources.source import RGB

Color = tuple[int, int, int]
SMALLEST = (96, 160)
"""Height and width in pixels below which sentences cannot be read."""
SMALLEST_LETTERS, LARGEST_LETTERS = 12, 72
"""Height of a line of text in pixels, on an image that has room for the smallest."""
LINES_PER_SIDE = 30
"""Lines that would fill the shorter side of a large image."""
FEWEST_LINES = 7
"""The same of an image that is too small for the smallest letters."""
REMEMBERED = 256
"""Texts that are kept as bitmaps; of a 4K video up to 40 MB."""
_UNDECOMPOSED = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
)
"""Letters that Unicode does not take apart into a plain one and an accent."""


def readable(rgb: RGB) -> bool:
    """Whether the image is large enough for a sentence."""
    height, width, _ = rgb.shape
    return bool(height >= SMALLEST[0] and width >= SMALLEST[1])


def letter_height(rgb: RGB, *, lines: int = LINES_PER_SIDE) -> int:
    """Height of a line of text in pixels: `lines` of them would fill the shorter side of a large image."""
    shorter: int = min(rgb.shape[:2])
    return min(max(shorter // lines, min(SMALLEST_LETTERS, shorter // FEWEST_LINES), 1), LARGEST_LETTERS)


def text_width(text: str, height: int) -> int:
    """Width in pixels of `text` in letters of a line `height` pixels high."""
    cv2 = packages.opencv()
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _scale(height), _thickness(height))[0][0])


def write(rgb: RGB, text: str, *, left: int, baseline: int, height: int) -> None:
    """Write `text` in white into `rgb` itself; what reaches beyond the border is cut."""
    letters = _letters(text, height)
    top = baseline - _rise(height)
    part = rgb[max(top, 0) : max(top + letters.shape[0], 0), max(left, 0) : max(left + letters.shape[1], 0)]
    first_row, first_column = max(-top, 0), max(-left, 0)
    if part.size:
        seen = letters[first_row : first_row + part.shape[0], first_column : first_column + part.shape[1]]
        cv2 = packages.opencv()
        # As much of what is missing to white as the letters are opaque.
        part[...] = cv2.add(part, cv2.multiply(cv2.bitwise_not(part), seen, scale=1 / 255))


@functools.lru_cache(maxsize=REMEMBERED)
def _letters(text: str, height: int) -> npt.NDArray[np.uint8]:
    """How opaque `text` makes each pixel, (rows, columns, 3) uint8; its baseline is `_rise(height)` rows down."""
    cv2 = packages.opencv()
    letters = np.zeros((_rise(height) + height, text_width(text, height) + height), dtype=np.uint8)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, _thickness(height)
    cv2.putText(letters, text, (0, _rise(height)), font, _scale(height), 255, thickness, cv2.LINE_AA)
    # Of every channel, as OpenCV multiplies images.
    return np.ascontiguousarray(np.broadcast_to(letters[:, :, None], (*letters.shape, 3)))


def _rise(height: int) -> int:
    # Accents reach above a line.
    return height + height // 2


def darken(rgb: RGB, *, top: int, left: int, height: int, width: int, light: float) -> None:
    """Make a rectangle of `rgb` itself darker, so that letters on it can be read; `light` 0 is black."""
    part = rgb[top : top + height, left : left + width]
    part[...] = packages.opencv().convertScaleAbs(part, alpha=light)


def _scale(height: int) -> float:
    # A capital of this font is 21 pixels high at scale 1, and fills about two thirds of a line.
    return height * 0.66 / 21


def _thickness(height: int) -> int:
    return max(1, round(height / 18))


def fitting_text(text: str, height: int, room: int, *, end: str = "") -> str:
    """`text` and `end` in at most `room` pixels; a long text loses its own end."""
    if text_width(text + end, height) <= room:
        return text + end
    # Letters differ in width, so the length that fits is found by trying.
    while text and text_width(f"{text}...{end}", height) > room:
        text = text[:-1]
    return f"{text}...{end}"


def drawable(name: str, *, otherwise: str) -> str:
    """A name in letters that OpenCV has, on one line; `otherwise` where it has hardly any of them."""
    visible = "".join(letter for letter in name if unicodedata.category(letter)[0] != "C").strip()
    if _has_all_letters(packages.opencv()):
        return visible or otherwise
    plain = in_ascii(visible)
    return plain if len(plain) > 2 * plain.count("?") else otherwise


def _has_all_letters(cv2: Any) -> bool:  # noqa: ANN401  a module
    """OpenCV has fonts for most scripts from version 5 on; before, ASCII alone."""
    return int(cv2.__version__.partition(".")[0]) >= 5


def in_ascii(name: str) -> str:
    """A name in ASCII: accents are dropped, what remains unknown is a question mark."""
    decomposed = unicodedata.normalize("NFKD", name.translate(_UNDECOMPOSED))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")
