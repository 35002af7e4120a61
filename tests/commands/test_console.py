from __future__ import annotations

import time

import pytest
from rich.console import Console

from dovit_deploy.commands import console
from dovit_deploy.commands.console import plain_lines, progress, show_table


def test_columns_are_aligned_and_numbers_to_the_right():
    lines = plain_lines(("name", "ms"), [("a", "1.5"), ("longer", "10.25")], right=(1,))
    assert lines == ["name       ms", "a         1.5", "longer  10.25"]


def test_a_pipe_gets_no_drawing(capsys):
    show_table("title", ("a", "b"), [("[red]x", "1")])
    assert capsys.readouterr().out == "title\n  a       b\n  [red]x  1\n"


def test_a_terminal_gets_a_drawing_with_the_text_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_table("title", ("a", "b"), [("[red]x", "1")])
    out = capsys.readouterr().out
    assert out.startswith("title\n") and "─" in out and "[red]x" in out


def test_quiet_progress_writes_nothing(capsys):
    with progress("reading", total=2, quiet=True) as shown:
        shown.advance(0.5)
        shown.begin("writing")
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_a_line_for_every_step_and_every_ten_seconds(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with progress("reading", total=3, unit="frames", quiet=False) as shown:
        for now, saved in ((1.0, 0.2), (10.5, 0.4), (11.0, 0.9)):
            clock.now = now
            shown.advance(saved)
        clock.now = 12.0
        shown.begin("writing")
    assert capsys.readouterr().err.splitlines() == [
        "  10.5 s  reading  2/3 frames (67%)  0.2 frames/s  FLOPs saved 30%  about 5 s left",
        "  12.0 s  writing",
    ]


class Clock:
    """The clock of progress, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(console, "perf_counter", lambda: self.now)


def test_time_left_counts_from_what_was_done_before(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with progress("training", total=1, unit="%", quiet=False, timed=True) as shown:
        for now, done in ((0.0, 0.5), (12.0, 0.6), (600.0, 0.7), (620.0, 1.0)):
            clock.now = now
            shown.reach(done, note="loss 0.1")
    assert capsys.readouterr().err.splitlines() == [
        "  12.0 s  training  60%  loss 0.1  about 48 s left",
        " 600.0 s  training  70%  loss 0.1  about 15 min left",
        " 620.0 s  training  100%  loss 0.1",
    ]


def test_a_long_step_that_reports_nothing_still_gives_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.02)
    with progress("export", quiet=False) as shown:
        shown.begin("export stage0")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert {line.split(" s  ")[1] for line in lines} <= {"export", "export stage0"}
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_fraction_is_shown_in_percent_and_an_unknown_number_without_a_total(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with progress(total=1, unit="%", quiet=False, timed=True) as shown:
        shown.reach(0.37, note="loss 0.125")
        shown.reach(1)
    with progress("warm-up", unit="runs", quiet=False, timed=True) as shown:
        shown.reach(3)
        shown.begin("measuring")
        shown.reach(4, total=8)
    lines = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["37%  loss 0.125", "100%", "warm-up  3 runs", "measuring", "measuring  4/8 runs (50%)"]


@pytest.mark.parametrize("timed", [False, True])
def test_a_terminal_gets_a_bar(capsys, monkeypatch, timed):
    terminal = Console(stderr=True, force_terminal=True, width=200)
    monkeypatch.setattr(console, "errors_console", lambda: terminal)
    with progress("reading", total=2, unit="frames", quiet=False, timed=timed) as shown:
        shown.advance(0.5)
        shown.advance(0.25)
        shown._bar.refresh()
        shown.begin("writing")
        shown.advance()
        shown._bar.refresh()
    drawn = capsys.readouterr().err
    assert "reading" in drawn and "2/2 frames" in drawn and "FLOPs saved 38%" in drawn
    assert "writing" in drawn and "1 frames" in drawn


def test_a_step_has_its_own_number_and_unit(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with progress("export", quiet=False, timed=True) as shown:
        shown.begin("measure ranges for int8", 4)
        clock.now = 20.0
        shown.advance()
        shown.begin("measure each part in int8", 2, unit="parts")
        clock.now = 40.0
        shown.advance()
    assert capsys.readouterr().err.splitlines() == [
        "   0.0 s  measure ranges for int8  0/4 images",
        "  20.0 s  measure ranges for int8  1/4 images (25%)  0.1 images/s  about 60 s left",
        "  20.0 s  measure each part in int8  0/2 parts",
        "  40.0 s  measure each part in int8  1/2 parts (50%)  0.1 parts/s  about 20 s left",
    ]
