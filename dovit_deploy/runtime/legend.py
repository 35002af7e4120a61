"""What is lettered over an overlay? Which classes are there, how fast it was, and what was saved.

The legend stands in the lower left corner, the figures in the upper left one; both follow the size of the frame, and
what would not fit is shortened or left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dovit_deploy import packages
from dovit_deploy.runtime.lettering import (
    Color,
    darken,
    drawable,
    fitting_text,
    letter_height,
    text_width,
    write,
)
from dovit_deploy.runtime.results import FrameTokens, Palette
from dovit_deploy.sources.source import RGB

SMALLEST_SIDE = 48
"""Pixels of the shorter side below which nothing is lettered."""
SMALLEST_OF_TWO_ROWS = 64
"""Height of a frame in pixels from which the legend has at least two classes."""
LINES = 38
"""Lines of the legend that would fill the shorter side of a large frame."""
MOST_HEIGHT, MOST_WIDTH = 0.5, 0.6
"""Shares of the frame that the legend may have."""
LONGEST_NAME = 0.4
"""Share of the frame's width that a name may have."""
BACKGROUND_LIGHT = 0.35
"""Brightness that is left of the frame behind letters."""
COUNTED_PIXELS = 500_000
"""Of a larger class map every second, third, ... row and column is counted: the shares are rounded anyway."""
RATE_FRAMES = 30
"""Frames over which the frame rate is taken."""


@dataclass(frozen=True)
class ClassShare:
    """A class of a frame, and which share of the pixels it has."""

    id: int
    name: str
    color: Color
    share: float


def class_shares(class_map: npt.NDArray[np.uint8], palette: Palette) -> tuple[ClassShare, ...]:
    """The classes that are present in `class_map` (H, W), in the order of their ids."""
    step = max(1, round((class_map.size / COUNTED_PIXELS) ** 0.5))
    counted = np.ascontiguousarray(class_map[::step, ::step])
    counts = packages.opencv().calcHist([counted], [0], None, [256], [0, 256]).reshape(-1)
    shares = []
    for number in np.flatnonzero(counts).tolist():
        red, green, blue = (int(value) for value in palette.colors[number])
        name = drawable(palette.names[number], otherwise=f"class {number}")
        shares.append(ClassShare(number, name, (red, green, blue), float(counts[number]) / counted.size))
    return tuple(shares)


class FrameRate:
    """Frames per second over the last frames of a run."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=RATE_FRAMES)

    def after(self, end_s: float, *, latency_ms: float) -> float:
        """The rate once a frame ended at `end_s` seconds; `latency_ms` stands in while it is the only one."""
        self._ends.append(end_s)
        passed = self._ends[-1] - self._ends[0]
        return (len(self._ends) - 1) / passed if passed > 0 else 1e3 / max(latency_ms, 1e-3)


def rate_text(rate: float) -> str:
    """ "24.9 fps"."""
    return f"{rate:.1f} fps"


def latency_text(latency_ms: float) -> str:
    """ "173 ms", "4.2 ms"."""
    return f"{latency_ms:.0f} ms" if latency_ms >= 10 else f"{latency_ms:.1f} ms"


def draw_figures(painted: RGB, tokens: FrameTokens, speed: str) -> None:
    """In the upper left corner of `painted` itself: speed, MACs saved, and the tokens that ran to the end."""
    if min(painted.shape[:2]) < SMALLEST_SIDE:
        return
    line = letter_height(painted)
    margin = line // 2
    room = painted.shape[1] - 4 * margin
    saved = f"{tokens.flops_saved:z.0%}"
    # What an answer that was taken over had kept is not what this frame ran.
    ran = f"tokens {tokens.kept[-1]}/{tokens.total}" if tokens.computed else "did not run"
    forms = (
        (f"{speed}   FLOPs saved {saved}   {ran}",),
        (f"{speed}   FLOPs saved {saved}",),
        (speed, f"FLOPs saved {saved}"),
        (speed, f"saved {saved}"),
    )
    lines = next((form for form in forms if _widest(form, line) <= room), forms[-1])
    pitch = line + margin
    width = min(_widest(lines, line) + 2 * margin, painted.shape[1] - 2 * margin)
    darken(painted, top=margin, left=margin, height=pitch * len(lines), width=width, light=BACKGROUND_LIGHT)
    for number, text in enumerate(lines):
        write(painted, text, left=2 * margin, baseline=margin + pitch * number + line, height=line)


def _widest(texts: Sequence[str], height: int) -> int:
    return max(text_width(text, height) for text in texts)


@dataclass(frozen=True)
class _Grid:
    """The legend's rows and columns on one frame, in pixels."""

    line: int
    pitch: int
    swatch: int
    name_width: int
    share_width: int
    rows: int
    columns: int = 1

    @property
    def column_width(self) -> int:
        """Colour, name and share of a class, with the gap behind them."""
        return self.swatch + self.name_width + self.share_width + 5 * self.gap

    @property
    def gap(self) -> int:
        """Between the parts of a row, and around the legend."""
        return max(2, self.line // 3)


def draw_legend(painted: RGB, shares: Sequence[ClassShare]) -> None:
    """In the lower left corner of `painted` itself: colour, name and share of the classes, as many as have room."""
    if not shares or min(painted.shape[:2]) < SMALLEST_SIDE:
        return
    grid, shown, left_out = _arranged(painted, shares)
    cells = len(shown) + bool(left_out)
    rows = min(grid.rows, -(-cells // grid.columns))
    height = rows * grid.pitch + grid.gap
    width = -(-cells // rows) * grid.column_width
    top, left = painted.shape[0] - height - grid.gap, grid.gap
    darken(painted, top=top, left=left, height=height, width=width, light=BACKGROUND_LIGHT)
    for number, entry in enumerate(shown):
        _draw_class(painted, entry, grid, *_cell(number, rows, grid, top=top, left=left))
    if left_out:
        row, column = _cell(len(shown), rows, grid, top=top, left=left)
        write(painted, f"+{left_out} more", left=column, baseline=row + grid.line, height=grid.line)


def _cell(number: int, rows: int, grid: _Grid, *, top: int, left: int) -> tuple[int, int]:
    """Top and left pixel of a class: the first column is filled from top to bottom, then the next one."""
    return top + grid.gap // 2 + number % rows * grid.pitch, left + grid.gap + number // rows * grid.column_width


def _draw_class(painted: RGB, entry: ClassShare, grid: _Grid, top: int, left: int) -> None:
    first = top + (grid.pitch - grid.swatch) // 2
    swatch = painted[first : first + grid.swatch, left : left + grid.swatch]
    # A light edge, since a dark colour would be lost on the dark background.
    swatch[...] = 200
    swatch[1:-1, 1:-1] = entry.color
    baseline, start = top + grid.line, left + grid.swatch + grid.gap
    write(
        painted, fitting_text(entry.name, grid.line, grid.name_width), left=start, baseline=baseline, height=grid.line
    )
    share = share_text(entry.share)
    end = start + grid.name_width + grid.gap + grid.share_width
    write(painted, share, left=end - text_width(share, grid.line), baseline=baseline, height=grid.line)


def share_text(share: float) -> str:
    """ "12%"; "<1%" where that would be 0."""
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _arranged(painted: RGB, shares: Sequence[ClassShare]) -> tuple[_Grid, list[ClassShare], int]:
    """Rows and columns, the classes that have room there (the most frequent, by id), and how many have none."""
    height, width = painted.shape[:2]
    line = letter_height(painted, lines=LINES)
    pitch = line + max(2, line // 3)
    rows = max(1 if height < SMALLEST_OF_TWO_ROWS else 2, int(MOST_HEIGHT * height) // pitch - 1)
    bare = _Grid(line, pitch, round(0.8 * line), 0, text_width("99%", line), rows)
    # The legend and a gap on either side of it are never wider than the frame.
    most = min(round(LONGEST_NAME * width), width - bare.column_width - 2 * bare.gap)
    grid = _named(bare, shares, most)
    columns = max(1, int(MOST_WIDTH * width) // grid.column_width)
    room = rows * columns
    if len(shares) <= room:
        return replace(grid, columns=columns), list(shares), 0
    # In a tiny frame every row is needed for a class.
    kept = room if room <= 3 else room - 1
    frequent = sorted(sorted(shares, key=lambda entry: -entry.share)[:kept], key=lambda entry: entry.id)
    return replace(_named(bare, frequent, most), columns=columns), frequent, 0 if kept == room else len(shares) - kept


def _named(grid: _Grid, shares: Sequence[ClassShare], most: int) -> _Grid:
    """The grid with names as wide as the longest of `shares`, at most `most` pixels."""
    return replace(grid, name_width=max(1, min(_widest([entry.name for entry in shares], grid.line), most)))
