from __future__ import annotations

from dovit_deploy.commands.console import plain_lines, show_table


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
