from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from dovit_deploy.commands import console
from dovit_deploy.commands.console import check_writable, plain_lines, progress, show_table
from dovit_deploy.errors import UsageError


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
    clock = iter([0.0, 0.0, *(second for now in (1.0, 10.5, 11.0) for second in (now, now)), 12.0, 12.0])
    monkeypatch.setattr(console, "perf_counter", lambda: next(clock))
    with progress("reading", total=3, unit="frames", quiet=False) as shown:
        for saved in (0.2, 0.4, 0.9):
            shown.advance(saved)
        shown.begin("writing")
    assert capsys.readouterr().err.splitlines() == [
        "  10.5 s  reading  2/3 frames  0.2 frames/s  FLOPs saved 30%",
        "  12.0 s  writing",
    ]


def test_a_fraction_is_shown_in_percent_and_an_unknown_number_without_a_total(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with progress(total=1, unit="%", quiet=False) as shown:
        shown.reach(0.37, note="loss 0.125")
        shown.reach(1)
    with progress("warm-up", unit="runs", quiet=False) as shown:
        shown.reach(3)
        shown.begin("measuring")
        shown.reach(4, total=8)
    lines = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["37%  loss 0.125", "100%", "warm-up  3 runs", "measuring", "measuring  4/8 runs"]


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


def test_a_report_that_would_replace_an_input_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable(Path("report.json"), tmp_path / "recipe.toml", "images", None)
    check_writable(None, tmp_path / "report.json")
    with pytest.raises(UsageError, match="this is an input"):
        check_writable(Path("recipe.toml"), None, tmp_path / "recipe.toml")


def test_a_report_inside_a_bundle_is_refused(tmp_path):
    bundle = tmp_path / "x.dovit"
    bundle.mkdir()
    with pytest.raises(UsageError, match="inside the bundle"):
        check_writable(bundle / "manifest.json")
