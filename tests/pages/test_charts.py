"""Where things lie in a drawing: inside it, in order, and as large as they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovit_deploy.pages.charts import (
    NARROW,
    Bar,
    Bars,
    ChartPoint,
    Histogram,
    Panel,
    Scatter,
    Series,
    Timeline,
    axis,
    css_color,
    round_step,
    short,
)

finite = st.floats(-1e9, 1e9)


@given(st.lists(finite, max_size=20), st.booleans())
def test_every_value_lies_on_the_axis_and_ticks_are_round(values, zero):
    found = axis(values, 300, 10, zero=zero)
    assert all(10 <= found.at(value) <= 300 for value in values)
    places = [place for place, _ in found.ticks()]
    assert 1 <= len(places) <= 14 and all(10 - 1e-6 <= place <= 300 + 1e-6 for place in places)
    # A higher value lies higher.
    assert places == sorted(places, reverse=True)
    assert len({text for _, text in found.ticks()}) == len(places)


@given(st.floats(1e-6, 1e9))
def test_steps_are_round_and_just_large_enough(least):
    step = round_step(least)
    assert least <= step * (1 + 1e-9) and step <= 2.5 * least * (1 + 1e-6)
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step) + 1e-9))
    )


def test_numbers_are_written_with_as_many_digits_as_steps_need():
    assert [short(value, step) for value, step in ((0.25, 0.05), (2.0, 1), (12000, 2000), (-0.0, 0.1))] == [
        "0.25",
        "2",
        "12,000",
        "0.0",
    ]


def timeline(*columns, x=(0.0, 1.0, 4.0), marks=()):
    panels = tuple(Panel(f"panel {n}", (Series(f"series {n}", column),)) for n, column in enumerate(columns))
    return Timeline("t", "s", tuple(x), tuple(f"frame {value:g}" for value in x), panels, marks)


def test_lines_follow_their_values_below_each_other():
    chart = timeline((0.0, 50.0, 100.0), (3.0, math.nan, 1.0))
    first, second = chart.lines(0)[0].split(), chart.lines(1)[0].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in first), strict=True)
    # A quarter of the way at 1 of 4 seconds, and higher values higher.
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(0.25, abs=1e-3) and ys[0] > ys[1] > ys[2]
    assert len(second) == 2, "no point where there is no value"
    assert all(float(point.split(",")[1]) > max(ys) for point in second)
    assert chart.up(1).end > chart.up(0).begin and chart.up(1).begin < chart.height


def test_what_a_pointer_reads_has_every_value_and_no_gap_of_json():
    read = timeline((0.0, math.nan, 100.0)).pointed
    assert read["labels"] == ["frame 0", "frame 1", "frame 4"]
    assert read["series"] == [("series 0", ["0", "-", "100"])]


def test_one_place_alone_has_an_axis():
    assert timeline((2.0,), x=(7.0,)).across.at(7.0) == timeline((2.0,)).across.begin


def test_bars_leave_room_for_what_is_written_behind_them():
    chart = Bars("t", ("a", "b"), (Bar("x", (1.0, 4.0), (3.0, 5.0)), Bar("y", (math.nan, -2.0))), unit=" ms")
    assert chart.across.at(5.0) <= NARROW - 70 and chart.across.at(-2.0) >= chart.names
    assert [chart.written(value) for value in (4.0, math.nan, -0.0)] == ["4.0 ms", "-", "0.0 ms"]
    assert chart.height >= 2 * chart.row_height


def test_a_histogram_has_a_box_for_each_bin_that_is_not_empty():
    chart = Histogram("t", "%", (("a", (0, 2, 4, 0)), ("b", (1, 0, 0, 0)), ("c", (0, 0, 0, 0))))
    boxes = chart.boxes(0)
    assert [said for *_, said in boxes] == ["25 to 50 %: 2", "50 to 75 %: 4"]
    (_, _, _, low, _), (_, top, _, high, _) = boxes
    assert high == chart.panel_height and low == high / 2 and top >= 0
    assert chart.boxes(1)[0][1] > top + high and chart.boxes(2) == ()


def test_a_scatter_holds_its_points_intervals_and_line():
    points = (ChartPoint(1.0, 70.0, "a", 68.0, 71.0), ChartPoint(3.0, 75.0, "b"))
    chart = Scatter("t", "x", "y", (("group", points),), line=("prediction", ((0.0, 60.0), (4.0, 80.0))))
    assert chart.across.at(0.0) >= chart.across.begin and chart.across.at(4.0) <= chart.across.end
    assert chart.up.end <= chart.up.at(80.0) < chart.up.at(68.0) < chart.up.at(60.0) <= chart.up.begin
    assert len(chart.line_points().split()) == 2
    assert Scatter("t", "x", "y", (("g", points),), zero=True).up.low == 0


def test_colours_are_those_of_a_style():
    assert css_color((255, 0, 16)) == "rgb(255,0,16)"
