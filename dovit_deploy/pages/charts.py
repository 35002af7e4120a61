"""Where does a figure lie in a drawing? Charts as plain numbers in, lines and boxes of an SVG out.

A chart is drawn in units of its own width (`WIDE` or `NARROW`); the page scales it. Colours are names of the page's
style (`series1` ...), so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dovit_deploy.printing import printable

WIDE, NARROW = 880, 430
"""Width of a drawing, in its own units, which are those of its letters (13 high)."""
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 34
"""Room around a plot, for labels."""
ROW = 24
"""Height of a row of bars."""
MOST_TICKS = 6
LEAST_SPAN = 2.0
"""Percent that an axis of accuracies shows at least."""


@dataclass(frozen=True)
class ChartAxis:
    """A range of values and where it lies in the drawing."""

    low: float
    high: float
    begin: float
    """Where `low` lies, in units of the drawing."""
    end: float

    def at(self, value: float) -> float:
        """Where `value` lies, to a tenth of a unit."""
        return round(self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Where round values lie, and how they are written."""
        step = round_step((self.high - self.low) / MOST_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple((self.at(number * step), short(number * step, step)) for number in range(first, last + 1))


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least` (above 0)."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(value: float, step: float) -> str:
    """`value` with as many digits as tell steps apart."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:z,.{digits}f}"


def axis(values: Sequence[float], begin: float, end: float, *, zero: bool = True) -> ChartAxis:
    """An axis on which all finite `values` lie; `zero`: 0 does, too."""
    finite = [value for value in values if math.isfinite(value)] + ([0.0] if zero else [])
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        high = low + 1.0
    # A little air above the highest value, so that it is not lost in the frame.
    return ChartAxis(low, high + 0.04 * (high - low), begin, end)


def css_color(rgb: tuple[int, int, int]) -> str:
    """Red, green and blue (0 to 255) as a style names them."""
    return "rgb({},{},{})".format(*rgb)


@dataclass(frozen=True)
class Series:
    """Values that belong together, one for each place of the chart; NaN: none there."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Series that share a vertical axis."""

    title: str
    """What is shown, with its unit."""
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Timeline:
    """Panels below each other over one horizontal axis; a pointer over it shows the values there."""

    template: ClassVar[str] = "timeline.html"

    title: str
    x_name: str
    x: tuple[float, ...]
    """Rising."""
    labels: tuple[str, ...]
    """What each place is called where the pointer is."""
    panels: tuple[Panel, ...]
    marks: tuple[tuple[float, str], ...] = ()
    """Values of x at which something happened, and what."""
    panel_height: ClassVar[int] = 150
    width: ClassVar[int] = WIDE

    @property
    def across(self) -> ChartAxis:
        """The horizontal axis."""
        return ChartAxis(self.x[0], self.x[-1] if self.x[-1] > self.x[0] else self.x[0] + 1, LEFT, WIDE - RIGHT)

    @property
    def height(self) -> int:
        """Of the drawing."""
        return len(self.panels) * (self.panel_height + TOP) + BOTTOM

    def up(self, number: int) -> ChartAxis:
        """The vertical axis of panel `number`."""
        bottom = (number + 1) * (self.panel_height + TOP)
        values = [value for series in self.panels[number].series for value in series.values]
        return axis(values, bottom, bottom - self.panel_height)

    def lines(self, number: int) -> tuple[str, ...]:
        """The points of each line of panel `number`; where a value is missing the line goes on straight."""
        across, up = self.across, self.up(number)
        return tuple(
            " ".join(
                f"{across.at(x):g},{up.at(value):g}"
                for x, value in zip(self.x, series.values, strict=True)
                if math.isfinite(value)
            )
            for series in self.panels[number].series
        )

    @property
    def pointed(self) -> dict[str, object]:
        """What the page's script shows at a place."""
        across = self.across
        series = [one for panel in self.panels for one in panel.series]
        return {
            "x": self.x,
            "labels": [printable(label) for label in self.labels],
            "series": [(printable(one.name), [_read(value) for value in one.values]) for one in series],
            "low": across.low,
            "high": across.high,
            "begin": across.begin,
            "end": across.end,
            "width": WIDE,
        }


def _read(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: one value for each of its series, and the interval of the last, where one is known."""

    name: str
    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    color: str | None = None
    """A CSS colour instead of the series' own."""
    note: str = ""
    """Written behind the name, small."""


@dataclass(frozen=True)
class Bars:
    """Rows of horizontal bars."""

    template: ClassVar[str] = "bars.html"

    title: str
    series: tuple[str, ...]
    rows: tuple[Bar, ...]
    unit: str = ""
    digits: int = 1
    names: int = 130
    """Room for the names."""
    width: ClassVar[int] = NARROW

    @property
    def row_height(self) -> int:
        """Of a row with all its bars."""
        return ROW if len(self.series) == 1 else 12 * len(self.series) + 12

    @property
    def height(self) -> int:
        """Of the drawing."""
        return self.row_height * len(self.rows) + 8

    @property
    def across(self) -> ChartAxis:
        """The horizontal axis; behind it there is room for the written values."""
        values = [value for row in self.rows for value in (*row.values, *(row.interval or ()))]
        return axis(values, self.names, NARROW - 70)

    def written(self, value: float) -> str:
        """A value as it stands behind its bar."""
        return "-" if math.isnan(value) else f"{value:z.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Histogram:
    """How often values between 0 and 1 fell into bins of one width; one small plot a group, all of one height."""

    template: ClassVar[str] = "histogram.html"

    title: str
    x_name: str
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and counts, of as many bins each."""
    width: ClassVar[int] = NARROW
    panel_height: ClassVar[int] = 64

    @property
    def height(self) -> int:
        """Of the drawing."""
        return len(self.groups) * (self.panel_height + 20) + BOTTOM

    @property
    def across(self) -> ChartAxis:
        """The horizontal axis, in percent."""
        return ChartAxis(0, 100, LEFT, NARROW - RIGHT)

    def boxes(self, number: int) -> tuple[tuple[float, float, float, float, str], ...]:
        """Left, top, width, height and what it says, of each bin of group `number` that is not empty."""
        counts = self.groups[number][1]
        bottom, most, bins = (number + 1) * (self.panel_height + 20), max(max(counts), 1), len(counts)
        boxes = []
        for place, count in enumerate(counts):
            if count:
                low, high = 100 * place / bins, 100 * (place + 1) / bins
                left, right = self.across.at(low), self.across.at(high)
                height = round(max(1.0, self.panel_height * count / most), 1)
                said = f"{low:g} to {high:g} %: {count}"
                boxes.append((left, round(bottom - height, 1), round(right - left - 1, 1), height, said))
        return tuple(boxes)


@dataclass(frozen=True)
class ChartPoint:
    """A point of a scatter chart; `low` and `high` bound its vertical interval."""

    x: float
    y: float
    name: str
    low: float | None = None
    high: float | None = None
    label: str = ""
    """Written beside it."""


@dataclass(frozen=True)
class Scatter:
    """Groups of points over two axes; `line` is drawn through them (a prediction, a trade-off)."""

    template: ClassVar[str] = "scatter.html"

    title: str
    x_name: str
    y_name: str
    groups: tuple[tuple[str, tuple[ChartPoint, ...]], ...]
    line: tuple[str, tuple[tuple[float, float], ...]] | None = None
    zero: bool = False
    """Both axes begin at 0."""
    least: float = 0.0
    """That the vertical axis spans at least: a difference that matters to nobody must not fill the drawing."""
    width: ClassVar[int] = WIDE
    height: ClassVar[int] = 380

    @property
    def across(self) -> ChartAxis:
        """The horizontal axis."""
        values = [point.x for _, points in self.groups for point in points] + [x for x, _ in self._line]
        return self._padded(values, LEFT, WIDE - RIGHT)

    @property
    def up(self) -> ChartAxis:
        """The vertical axis."""
        ends = [end for _, points in self.groups for p in points for end in (p.y, p.low, p.high) if end is not None]
        ends += [y for _, y in self._line]
        lacking = max(0.0, self.least - (max(ends) - min(ends))) / 2
        return self._padded([min(ends) - lacking, max(ends) + lacking], self.height - BOTTOM, TOP)

    def _padded(self, values: Sequence[float], begin: float, end: float) -> ChartAxis:
        plain = axis(values, begin, end, zero=self.zero)
        room = 0.0 if self.zero else 0.05 * (plain.high - plain.low)
        return ChartAxis(plain.low - room, plain.high, begin, end)

    @property
    def _line(self) -> tuple[tuple[float, float], ...]:
        return () if self.line is None else self.line[1]

    def line_points(self) -> str:
        """The points of the line."""
        across, up = self.across, self.up
        return " ".join(f"{across.at(x):g},{up.at(y):g}" for x, y in self._line)


Chart = Timeline | Bars | Histogram | Scatter
