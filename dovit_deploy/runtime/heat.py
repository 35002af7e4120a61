"""Heat over a grey picture, and the bar that explains it: what the maps of tokens are painted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.colors import colored
from dovit_deploy.runtime.lettering import Color, darken, letter_height, text_width, write
from dovit_deploy.runtime.results import RGB

RAMP = ((38, 30, 110), (52, 92, 168), (46, 160, 160), (236, 190, 78), (255, 104, 48))
"""From cold to hot; lightness tells them apart too."""
HEAT = 0.55
"""Share of the ramp's colour in the painted picture."""


@dataclass(frozen=True)
class Field:
    """A part of the bar: as wide as `share` (0..1), in the ramp's colour at `level` (0..1), with the first text that
    fits."""

    share: float
    level: float
    texts: tuple[str, ...]


def paint_heat(rgb: RGB, level: npt.NDArray[np.uint8]) -> RGB:
    """The picture in grey under the ramp's colours at `level` (H, W) uint8; a new array."""
    cv2 = packages.opencv()
    heat = colored(level, _ramp())
    grey = cv2.cvtColor(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    painted: RGB = cv2.addWeighted(grey, 1 - HEAT, heat, HEAT, 0)
    return painted


def draw_legend(painted: RGB, fields: Sequence[Field], *notes: str) -> None:
    """A bar across the bottom of `painted` itself: the fields, and right of them the first note that leaves them room.

    Of several notes the longest comes first.
    """
    line = letter_height(painted)
    height, margin = 2 * line, line // 2
    top = painted.shape[0] - height
    darken(painted, top=top, left=0, height=height, width=painted.shape[1], light=0.25)
    baseline = top + line + line // 3
    # Without fields the note has the whole bar.
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
