"""Any text for any flag or argument of any verb: one of the contract's codes, a line or two, nothing left behind.

Verbs and flags are taken from the parser itself, so that a new one is covered as it appears.
"""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy import cli
from dovit_deploy.errors import EnvironmentProblem, OutputFailed
from dovit_deploy.printing import printable

APPLICATION = cli._application()
COMMANDS = typer.main.get_command(APPLICATION).commands
VERBS = sorted(COMMANDS)
CODES = {0, 2, 3, 4, 5, 6, 7}
SECONDS = 2.0
"""Of the processor, for one call; the first call of a verb imports what it needs and is not counted."""

NUMBERS = [
    *(
        "0",
        "-1",
        "1_000",
        " 5",
        "5 ",
        "٣",
        "²",
        "1e300",
        "-1e300",
        "1e-320",
        "nan",
        "-nan",
        "inf",
        "-inf",
        "2e9",
        "0x10",
    ),
    *("10**30", "1" + "0" * 30, "9" * 5000, "1/3", "1,5", "+1", "--1", "true", "½", "²x64", "64x²", "0x0", "x", "64x"),
    *("999999x999999", "1x1", "0,0,0", "nan,nan,nan", "1,2", ",", ",,,", "masks,masks", "fp32,fp32"),
]
PATHS = [
    *("", " ", ".", "..", "/", "-", "--", "~", "*", "[", "?", "file.txt", "folder", "file.txt/x", "folder/", "x" * 300),
    *("x/" * 2500, "x" * 5000, "\0", "a\0b", "\udce4", "\ud800", "a\nb", "\x1b[2J", "\u202e", "/dev/null", "/dev/full"),
    *("file.txt\0", "://", "http://", "rtsp://me:secret@", "rtsp://[", "file:///", "link", "pipe?", "C:\\x", "$(x)"),
]
TEXTS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(PATHS), st.text(max_size=40))

ARGUMENTS = {
    "run": ("image.png", "--bundle", "tiny.dovit"),
    "batch": ("missing", "-o", "out", "--bundle", "missing.dovit"),
    "export": ("weights.pth",),
    "adapt": ("missing", "missing"),
    "bench": ("missing.dovit",),
    "eval": ("missing.dovit", "missing"),
    "calibrate": ("missing.dovit", "missing"),
    "train": ("missing",),
    "view": ("missing.dovit", "image.png"),
    "build": ("missing.dovit",),
    "triton": ("missing.dovit", "-o", "models"),
    "cache": ("ls",),
    "inspect": ("missing.dovit",),
    "doctor": (),
}
"""What makes each verb begin and end soon: a file that is read, or one that is not there."""


def parameters(verb: str) -> list[tuple[str, int]]:
    """The flags of a verb, and its arguments as their positions: ("--every", -1), ("source", 0)."""
    flags = [(name, -1) for parameter in COMMANDS[verb].params for name in parameter.opts if name.startswith("-")]
    others = [parameter.name for parameter in COMMANDS[verb].params if not parameter.opts[0].startswith("-")]
    return [*flags, *((name, number) for number, name in enumerate(others))]


def line_of(verb: str, parameter: tuple[str, int], text: str, *, joined: bool) -> list[str]:
    """The command line that gives `text` to a flag or argument."""
    arguments = list(ARGUMENTS[verb])
    name, position = parameter
    if position >= 0:
        arguments[position : position + 1] = [text]
        return [verb, *arguments]
    return [verb, *arguments, *([f"{name}={text}"] if joined and name.startswith("--") else [name, text])]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_bundle_path: Path) -> Iterator[Path]:
    """The current folder, with a file, a folder, a link to nothing, an image and weights of no family."""
    import torch

    root = tmp_path_factory.mktemp("any")
    folder = root / "here"
    folder.mkdir()
    (folder / "file.txt").write_text("text\n")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    (folder / "tiny.dovit").symlink_to(tiny_bundle_path)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "image.png")
    torch.save({"x": torch.zeros(1)}, folder / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        # Made once: it takes longer than the verb.
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setattr("dovit_deploy.measure.doctor.examination", _nothing_runs)
        patch.setattr("dovit_deploy.bundle.installed.default_bundle", _nothing_runs)
        patch.setattr(sys, "excepthook", sys.excepthook)
        for verb in VERBS:
            cli._run(APPLICATION, [verb, *ARGUMENTS[verb], "--quiet"])
        shutil.rmtree("runs", ignore_errors=True)
        yield folder


def _nothing_runs() -> None:
    raise EnvironmentProblem("not examined here")


def tree(root: Path) -> set[str]:
    """Everything below `root`, links as themselves, but for the cache, which keeps what a deadline had measured."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    return {name for name in names if name.partition("/")[0] != "cache"}


def check(here: Path, capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    before, began = tree(here.parent), time.process_time()
    code = cli._run(APPLICATION, line)
    took = time.process_time() - began
    out, err = capsys.readouterr()
    shown = [word[:100] for word in line]
    assert code in CODES, (shown, code, err)
    # Who asks for it gets that of the cause, too, as of a package that is missing.
    asked_for = "Traceback (most recent call last):\n" if "-v" in line or "--verbose" in line else "\0"
    assert "Traceback" not in err.replace(asked_for, "")
    assert took < SECONDS, (shown, took)
    assert "secret" not in out + err, (shown, err)
    lines = (out + err).splitlines()
    assert [text for text in lines if printable(text) != text] == [], shown
    if code not in (0, 7):
        errors = [text for text in err.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1 and len(errors[0]) > len("error: "), (shown, err)
        # What was done is kept where a disk or device is full.
        assert code == OutputFailed.exit_code or tree(here.parent) == before, shown
    _tidy(here, before)


def _tidy(here: Path, before: set[str]) -> None:
    after = tree(here.parent)
    assert after >= before
    # The innermost first.
    for name in sorted(after - before, reverse=True):
        path = here.parent / name
        # Nothing but what was asked for, and that lies here.
        assert here in path.parents, name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("verb", VERBS)
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_text(here: Path, capsys: pytest.CaptureFixture[str], verb: str, data: st.DataObject) -> None:
    parameter = data.draw(st.sampled_from(parameters(verb)))
    check(here, capsys, line_of(verb, parameter, data.draw(TEXTS), joined=data.draw(st.booleans())))


@pytest.mark.exhaustive
@pytest.mark.parametrize("verb", VERBS)
def test_every_odd_text_for_every_flag(here: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    for parameter in parameters(verb):
        for text in (*NUMBERS, *PATHS):
            check(here, capsys, line_of(verb, parameter, text, joined=False))


def test_every_verb_is_covered() -> None:
    assert ARGUMENTS.keys() == COMMANDS.keys()
