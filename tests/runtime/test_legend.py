"""What is lettered over an overlay: the classes that are present, the figures, on frames of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dovit_deploy.bundle.palette import generated_palette
from dovit_deploy.runtime import legend
from dovit_deploy.runtime.legend import (
    ClassShare,
    FrameRate,
    class_shares,
    draw_figures,
    draw_legend,
    latency_text,
    rate_text,
    share_text,
)
from dovit_deploy.runtime.lettering import text_width
from dovit_deploy.runtime.results import FrameTokens, Palette, Window
from tests.fakes import report_from_keep

SIZES = [(64, 64), (64, 96), (96, 64), (120, 160), (540, 960), (960, 540), (60, 2000), (2000, 60), (2160, 3840)]


def palette(*names):
    return Palette(names, np.array(generated_palette(len(names)), dtype=np.uint8))


def tokens(saved=0.42):
    report = report_from_keep(np.ones((2, 2)), np.eye(2), saved=saved)
    return FrameTokens((Window(0, 0, 32, 32, report),), (32, 32))


def share(number, part=0.2, name=None):
    return ClassShare(number, name or f"name {number}", (200, 30, 10 * number % 256), part)


def drawn(shape, draw, *arguments):
    """Where `draw` changes a grey frame, as rows and columns, and the frame."""
    frame = np.full((*shape, 3), 150, dtype=np.uint8)
    draw(frame, *arguments)
    return np.nonzero((frame != 150).any(axis=2)), frame


def test_shares_of_the_classes_that_are_present():
    class_map = np.zeros((10, 20), dtype=np.uint8)
    class_map[:, 15:] = 2
    class_map[0, 0] = 4
    found = class_shares(class_map, palette("road", "sky", "car", "tree", "a\x1bb"))
    assert [(entry.id, entry.name, entry.share) for entry in found] == [
        (0, "road", pytest.approx(0.745)),
        (2, "car", pytest.approx(0.25)),
        (4, "ab", pytest.approx(0.005)),
    ]
    assert found[1].color == generated_palette(5)[2]


def test_a_large_class_map_is_counted_in_part():
    class_map = np.zeros((2160, 3840), dtype=np.uint8)
    class_map[:, 960:] = 1
    assert [round(entry.share, 2) for entry in class_shares(class_map, palette("a", "b"))] == [0.25, 0.75]


def test_texts():
    assert [share_text(value) for value in (1.0, 0.256, 0.006, 0.004, 1e-9)] == ["100%", "26%", "1%", "<1%", "<1%"]
    assert [latency_text(value) for value in (173.2, 10.0, 4.21)] == ["173 ms", "10 ms", "4.2 ms"]
    assert rate_text(24.94) == "24.9 fps"


def test_the_rate_is_that_of_the_last_frames():
    rate = FrameRate()
    assert rate.after(5.0, latency_ms=50.0) == pytest.approx(20.0)
    assert rate.after(5.1, latency_ms=50.0) == pytest.approx(10.0)
    for number in range(100):
        latest = rate.after(6.0 + number * 0.02, latency_ms=50.0)
    assert latest == pytest.approx(50.0)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("classes", [1, 5, 40])
def test_the_legend_stands_in_the_lower_left_on_frames_of_any_size(shape, classes):
    entries = [share(number, 1 / classes) for number in range(classes)]
    (rows, columns), _ = drawn(shape, draw_legend, entries)
    assert len(rows)
    height, width = shape
    assert rows.min() >= height * (1 - legend.MOST_HEIGHT) - 6 and rows.max() < height
    # A narrow frame has room for one column, whatever its share is.
    assert columns.max() < max(width * legend.MOST_WIDTH + 24, min(width, 120))


@pytest.mark.parametrize("shape", [(47, 300), (300, 47), (1, 1), (5, 9)])
def test_nothing_is_lettered_where_it_could_not_be_read(shape):
    assert not len(drawn(shape, draw_legend, [share(1)])[0][0])
    assert not len(drawn(shape, draw_figures, tokens(), "24 fps")[0][0])


@pytest.mark.parametrize("shape", [(64, 64), (270, 480), (2160, 3840)])
def test_every_class_that_is_listed_shows_its_colour(shape):
    entries = [share(1, 0.7, "road"), share(3, 0.3, "car")]
    _, frame = drawn(shape, draw_legend, entries)
    for entry in entries:
        assert (frame == entry.color).all(axis=2).sum() >= 20
    assert (frame >= 210).all(axis=2).any(), "letters"


def test_absent_classes_have_no_row_and_no_classes_no_legend():
    sizes = [len(drawn((540, 300), draw_legend, [share(n) for n in range(k)])[0][0]) for k in (0, 1, 2, 3)]
    assert sizes[0] == 0 < sizes[1] < sizes[2] < sizes[3]


def test_the_most_frequent_classes_have_the_room_and_keep_their_order():
    entries = [share(number, number / 100, f"n{number}") for number in range(1, 14)]
    frame = np.full((120, 90, 3), 150, dtype=np.uint8)
    draw_legend(frame, entries)
    shown = [entry.id for entry in entries if (frame == entry.color).all(axis=2).any()]
    assert shown == [12, 13] or shown == [11, 12, 13]


def test_a_long_name_keeps_its_share_inside():
    short = drawn((240, 320), draw_legend, [share(1, 0.5, "a" * 200)])[0]
    assert 80 < short[1].max() < 250
    other = drawn((240, 320), draw_legend, [share(1, 0.9, "a" * 200)])[1]
    assert (drawn((240, 320), draw_legend, [share(1, 0.5, "a" * 200)])[1] != other).any()


@pytest.mark.parametrize("shape", SIZES)
def test_the_figures_stand_in_the_upper_left(shape):
    (rows, columns), frame = drawn(shape, draw_figures, tokens(), "24.9 fps")
    assert len(rows) and rows.max() < max(shape[0] / 2, 40) and columns.max() < shape[1]
    assert (frame >= 210).all(axis=2).any(), "letters"


def test_speed_and_saving_are_shown_in_the_longest_form_that_fits(monkeypatch):
    written = []
    monkeypatch.setattr(legend, "write", lambda rgb, text, **where: written.append(text))
    # OpenCV's versions differ in the width of their letters.
    middle = text_width("24.9 fps   FLOPs saved 42%", 12) + 4 * 6
    for width in (960, middle, 130, 64):
        draw_figures(np.zeros((540, width, 3), dtype=np.uint8), tokens(), "24.9 fps")
    full, saving, *stacked = written
    assert (full, saving) == ("24.9 fps   FLOPs saved 42%   tokens 3/5", "24.9 fps   FLOPs saved 42%")
    assert stacked == ["24.9 fps", "FLOPs saved 42%", "24.9 fps", "saved 42%"]


@pytest.mark.parametrize("how", [{"still": True}, {"filled": "hold"}, {"filled": "warp"}])
def test_of_a_frame_that_did_not_run_no_tokens_are_named(how, monkeypatch):
    written = []
    monkeypatch.setattr(legend, "write", lambda rgb, text, **where: written.append(text))
    draw_figures(np.zeros((540, 960, 3), dtype=np.uint8), replace(tokens(), **how), "24.9 fps")
    assert written == ["24.9 fps   FLOPs saved 100%   did not run"]
