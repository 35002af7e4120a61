"""Writing on pictures: the size of letters follows the picture, and what would not fit is left out."""

from __future__ import annotations

from dovit_deploy import packages
from dovit_deploy.runtime.results import RGB

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
SMALLEST = (96, 160)
"""Height and width in pixels below which nothing can be read."""


def readable(rgb: RGB) -> bool:
    """Whether the picture is large enough to be written on."""
    height, width, _ = rgb.shape
    return bool(height >= SMALLEST[0] and width >= SMALLEST[1])


def letter_height(rgb: RGB) -> int:
    """Height of a line of text in pixels, between 12 and 48: a thirtieth of the picture's shorter side."""
    shorter: int = min(rgb.shape[:2])
    return min(max(shorter // 30, 12), 48)


def text_width(text: str, height: int) -> int:
    """Width in pixels of `text` in letters of a line `height` pixels high."""
    cv2 = packages.opencv()
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _scale(height), _thickness(height))[0][0])


def write(rgb: RGB, text: str, *, left: int, baseline: int, height: int, color: Color = WHITE) -> None:
    """Write `text` into `rgb` itself."""
    cv2 = packages.opencv()
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, _thickness(height)
    cv2.putText(rgb, text, (left, baseline), font, _scale(height), color, thickness, cv2.LINE_AA)


def darken(rgb: RGB, *, top: int, left: int, height: int, width: int, light: float) -> None:
    """Make a rectangle of `rgb` itself darker, so that letters on it can be read; `light` 0 is black."""
    part = rgb[top : top + height, left : left + width]
    part[...] = packages.opencv().convertScaleAbs(part, alpha=light)


def _scale(height: int) -> float:
    # A capital of this font is 21 pixels high at scale 1, and fills about two thirds of a line.
    return height * 0.66 / 21


def _thickness(height: int) -> int:
    return max(1, round(height / 18))
