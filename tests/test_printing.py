"""What leaves the process as text: nothing that a terminal obeys, no secrets, and never a failure to print."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dovit_deploy import cli
from dovit_deploy.commands import console
from dovit_deploy.errors import DovitError, UsageError
from dovit_deploy.printing import print_remarks, print_results, print_traceback, printable, quote, shortened

HOSTILE = "a\x1b[31m\x07\r\n\tb\x7f\x85\x9b\u202ec\u2066\u200b\u2028\ufeff\udce4"
ESCAPED = r"a\x1b[31m\x07\r\n\tb\x7f\x85\x9b\u202ec\u2066\u200b\u2028\ufeff\udce4"


def test_what_a_terminal_obeys_is_escaped():
    assert printable(HOSTILE) == ESCAPED
    assert printable(ESCAPED) == ESCAPED
    assert printable("\x00\x1f\ud800\u2029\u00ad\U000e0041") == r"\x00\x1f\ud800\u2029\xad\U000e0041"


@pytest.mark.parametrize("text", ["", "Straße", "道路 车", "می‌خواهم", "👩‍🚗", "a b\\c", "עברית"])
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_a_name_cannot_make_a_line_of_its_own(capsys):
    print_results("first", f"x {HOSTILE}")
    print_remarks("rtsp://user:secret@host/a\nnext: rm")
    assert capsys.readouterr() == (f"first\nx {ESCAPED}\n", "rtsp://***@host/a\\nnext: rm\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_are_escaped_and_aligned(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    console.show_table("classes\x1b", ("name", "IoU"), [("a\x1b\nb", "1.0"), ("http://u:p@h", "2")], right=(1,))
    # Rich sets headers in bold.
    out = re.sub(r"\x1b\[[01]m", "", capsys.readouterr().out)
    assert "\x1b" not in out and "classes\\x1b\n" in out and "a\\x1b\\nb" in out and "http://***@h" in out
    if not terminal:
        lines = out.splitlines()
        assert lines[2].index("1.0") == lines[3].index("2") - 2


def test_progress_and_remarks_are_escaped(capsys):
    with console.progress("step", quiet=False) as shown:
        shown.begin("next\x1b\n")
    console.next_command(f"dovit inspect {quote(HOSTILE)}", quiet=False)
    err = capsys.readouterr().err
    assert "s  next\\x1b\\n" in err and err.count("\n") == 2


def test_a_message_has_as_many_lines_as_arguments():
    error = UsageError("first\nforged", "second")
    assert (error.lines, str(error)) == (("first\nforged", "second"), "first\nforged\nsecond")
    assert str(DovitError()) == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_every_encoding_prints_every_text(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    name = f"道{HOSTILE}.png"
    monkeypatch.setattr(cli, "VERBS", (_verb(name), cli.bench))
    assert cli._run(cli._application(), ["verb"]) == 2
    shown = name if encoding.startswith("utf") else name.replace("道", r"\u9053")
    for stream, begin in ((out, ""), (err, "error: ")):
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert text == f"{begin}{shown.replace(HOSTILE, ESCAPED)}\n"


def _verb(name: str):
    def verb() -> None:
        """Print and refuse."""
        console.result(name)
        raise UsageError(name)

    return verb


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_missing_stream_ends_no_work(monkeypatch, stream):
    closed = None
    if stream == "closed":
        closed = io.StringIO()
        closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", closed)
    console.show_table("t", ("a",), [("b",)])
    console.remark("x", quiet=False)
    with console.progress("step", quiet=False) as shown:
        shown.begin("next")


@pytest.mark.skipif(os.name == "nt", reason="descriptors of a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path: Path, closed: str):
    """Otherwise what a library prints on descriptor 1 or 2 lands in the first file that is opened."""
    code = (
        "import os; from dovit_deploy.printing import prepare_streams; prepare_streams(); "
        "file = open('out.txt', 'w'); os.write(1, b'library'); os.write(2, b'library'); "
        "file.write('ours'); file.close()"
    )
    done = subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{code}" {closed}'], cwd=tmp_path, check=False)
    assert (done.returncode, (tmp_path / "out.txt").read_text()) == (0, "ours")


def test_a_traceback_is_masked_and_escaped(capsys):
    try:
        raise UsageError(f"rtsp://user:secret@host {HOSTILE[:9]}")
    except UsageError as error:
        print_traceback(type(error), error, error.__traceback__)
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "secret" not in err and "\x1b" not in err and "\\x1b[31m" in err


# What the option parser says.


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "x.mp4", "--every", "rtsp://me:secret@host/live"], "--every"),
        (["run", "--no-such-flag=rtsp://me:secret@host/\x1b[2J\n"], "--no-such-flag"),
        (["run", "x.mp4", "rtsp://me:secret@host/a"], "rtsp://***@host/a"),
        (["cache", "rtsp://me:secret@host/a\u202e"], "rtsp://***@host/a\\u202e"),
        (["rtsp://me:secret@host/a"], "No such command 'rtsp://***@host/a'"),
        (["run", "x.mp4", "x" * 5000], "xxx...xxx"),
    ],
)
def test_wrong_usage_is_said_in_two_lines_without_secrets(capsys, arguments, shown):
    assert cli._run(cli._application(), arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and shown in err and "secret" not in err
    assert len(err.splitlines()) == 2 and len(err) < 600 and err.startswith("error: ")
    assert printable(err.replace("\n", "")) == err.replace("\n", "")


def test_long_words_lose_their_middle():
    assert shortened("a " + "b" * 200) == "a " + "b" * 200
    assert shortened("a " + "b" * 201) == "a " + "b" * 98 + "..." + "b" * 98


# Suggested commands.


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="pasted into bash")
@pytest.mark.parametrize(
    "name", ["a b", "it's", "$(x)`y`", "a\nb", "\x1b[31m\\", "-x", "--", "\udce4\udcff1", "\u202e7", "'\x01'", "*"]
)
def test_a_suggested_command_means_the_file(name):
    word = quote(name)
    assert printable(word) == word
    shown = subprocess.run(["/bin/bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert os.fsdecode(shown) == (f"./{name}" if name.startswith("-") else name)
