"""What the command line prints: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console

from dovit_deploy.credentials import masked
from dovit_deploy.files import write_text
from dovit_deploy.printing import is_terminal, print_remarks, print_results, printable, quote

if TYPE_CHECKING:
    from rich.progress import Progress

Json = Mapping[str, object]


def errors_console() -> Console:
    """The console of progress: stderr, made anew each time so that a redirected stderr is respected."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def this_command() -> str:
    """The command that is running, as it can be pasted into a shell; passwords in addresses are masked."""
    name = Path(sys.argv[0]).name
    # `python -m dovit_deploy`.
    words = ["dovit" if name == "__main__.py" else name, *sys.argv[1:]]
    return " ".join(shlex.quote(printable(word)) if word.startswith("-") else quote(masked(word)) for word in words)


def result(*lines: str) -> None:
    """Lines of results; a line break within one is printed escaped, since it came with a name."""
    print_results(*lines)


def remark(text: str, *, quiet: bool) -> None:
    """A line about what is going on."""
    if not quiet:
        print_remarks(text)


def remarks(texts: Iterable[str], *, quiet: bool) -> None:
    """Several such lines."""
    for text in texts:
        remark(text, quiet=quiet)


def next_command(command: str, *, quiet: bool) -> None:
    """The next useful command, with real paths in it, each of them through `printing.quote`."""
    remark(f"next: {command}", quiet=quiet)


def write_json(path: Path | None, report: Json) -> None:
    """Write `report` to `path`, whole or not at all; nothing for None.

    Raises:
        OutputFailed: the disk refuses it.
    """
    if path is not None:
        write_text(path, json.dumps(report, indent=1) + "\n")


LINE_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal to draw a bar in."""


class ProgressDisplay:
    """How far a long verb is. This one shows nothing (`--quiet`); the others draw a bar, or write lines."""

    def __init__(self, step: str, *, total: float | None, unit: str) -> None:
        self.step, self.total, self.unit = printable(step), total, unit
        self.done = 0.0
        self.note = ""
        self._start, self._saved = perf_counter(), 0.0
        self._first: tuple[float, float] | None = None

    def advance(self, saved: float | None = None) -> None:
        """One more unit is done; `saved`: the fraction of its dense FLOPs that it saved."""
        self._first = self._first or (self._start, 0.0)
        self.done += 1
        rate = self.done / max(perf_counter() - self._start, 1e-9)
        self.note = f"{rate:.1f} {self.unit}/s"
        if saved is not None:
            self._saved += saved
            self.note += f"  FLOPs saved {self._saved / self.done:z.0%}"
        self._changed(new_step=False)

    def reach(self, done: float, *, total: float | None = None, note: str = "") -> None:
        """`done` of `total` units are done; `note` is shown beside them, as the loss of a training."""
        # What is gone on with was done before, so time left counts from the first call.
        self._first = self._first or (perf_counter(), done)
        self.done, self.total, self.note = done, self.total if total is None else total, note
        self._changed(new_step=False)

    def begin(self, step: str, total: float | None = None, *, unit: str | None = None) -> None:
        """The next step of the work, counted from 0; of `total` units, if that is known yet; `unit`: another one."""
        if self.step == step:
            return
        self.step, self.total, self.done, self.note = step, total, 0.0, ""
        self.unit = unit or self.unit
        self._start, self._saved, self._first = perf_counter(), 0.0, None
        self._changed(new_step=True)

    def counted(self) -> str:
        """ "12/101 images", "12 images" of an unknown number, "37%"; "" before the first of an unknown number."""
        if self.unit == "%":
            return f"{self.done / (self.total or 1):.0%}"
        if self.total is not None:
            return f"{self.done:.0f}/{self.total:.0f} {self.unit}"
        return f"{self.done:.0f} {self.unit}" if self.done else ""

    def share(self) -> str:
        """ "(12%)" beside a number of units of a known total; else ""."""
        return f"({self.done / self.total:.0%})" if self.total and self.done and self.unit != "%" else ""

    def left(self, now: float) -> str:
        """ "about 40 s left" at the pace of this step so far; "" where that is not known."""
        began, done = self._first or (now, 0.0)
        if self.total is None or self.done <= done or self.done >= self.total:
            return ""
        seconds = (now - began) * (self.total - self.done) / (self.done - done)
        return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"

    def _changed(self, *, new_step: bool) -> None:
        del new_step


class _Bar(ProgressDisplay):
    def __init__(self, step: str, *, total: float | None, unit: str, bar: Progress) -> None:
        super().__init__(step, total=total, unit=unit)
        self._bar = bar
        self._task = bar.add_task(step, total=total, counted="", note="")

    def _changed(self, *, new_step: bool) -> None:
        if new_step:
            # A new task, since Rich cannot take back a total, and its columns' clocks run from the beginning of one.
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self.step, total=None, counted="", note="")
        self._bar.update(
            self._task,
            total=self.total,
            completed=self.done,
            counted=self.counted(),
            note=self.note,
            refresh=not self._bar.live.auto_refresh,
        )


class _Lines(ProgressDisplay):
    def __init__(self, step: str, *, total: float | None, unit: str) -> None:
        super().__init__(step, total=total, unit=unit)
        self._began = self._written = perf_counter()
        self._ended, self._writing = threading.Event(), threading.Lock()

    def _changed(self, *, new_step: bool) -> None:
        with self._writing:
            now = perf_counter()
            if new_step or now - self._written >= LINE_EVERY_S:
                self._written = now
                self._write(now)

    def _write(self, now: float) -> None:
        parts = (self.step, " ".join(filter(None, (self.counted(), self.share()))), self.note, self.left(now))
        print_remarks(f"{now - self._began:6.1f} s  {'  '.join(filter(None, parts))}")

    @contextmanager
    def beating(self) -> Iterator[None]:
        """While the block runs, a line is also written when nothing is reported for long: the work is not stuck."""
        thread = threading.Thread(target=self._beat, name="dovit-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        # Twice as often as there are lines: one that is late is then late by half of that.
        while not self._ended.wait(LINE_EVERY_S / 2):
            self._changed(new_step=False)


@contextmanager
def progress(
    step: str = "", *, total: float | None = None, unit: str = "images", quiet: bool, timed: bool = False
) -> Iterator[ProgressDisplay]:
    """How far a long verb is, on stderr: a bar in a terminal; without one a line every 10 s and for every step.

    Args:
        step: what is done first; `begin` names the next one.
        total: number of units; None where it is not known.
        unit: what is counted, in the plural; "%" shows the part of `total` that is done.
        quiet: show nothing.
        timed: the work is being timed: nothing is drawn between two calls, so that no other thread computes meanwhile.
    """
    if quiet:
        yield ProgressDisplay(step, total=total, unit=unit)
        return
    stream = errors_console()
    if not stream.is_terminal:
        lines = _Lines(step, total=total, unit=unit)
        with nullcontext() if timed else lines.beating():
            yield lines
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counted]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stream, transient=True, auto_refresh=not timed, speed_estimate_period=300) as bar:
        yield _Bar(step, total=total, unit=unit, bar=bar)


# Tables on stdout: drawn in a terminal, plain aligned columns in a file or a pipe.

Cells = Sequence[str]


def show_table(title: str, headers: Cells, rows: Sequence[Cells], *, right: Sequence[int] = ()) -> None:
    """Print a table; the columns numbered in `right` hold numbers and are aligned to the right."""
    result(title)
    # Before columns are measured: an escaped character is wider.
    rows = [[printable(masked(cell)) for cell in row] for row in rows]
    # Boxes and colours are for people; a program that reads a pipe needs plain columns.
    if is_terminal():
        _draw(headers, rows, right)
        return
    for line in plain_lines(headers, rows, right=right):
        result(f"  {line}")


def plain_lines(headers: Cells, rows: Sequence[Cells], *, right: Sequence[int] = ()) -> list[str]:
    """The table as lines of aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    lines = []
    for row in (headers, *rows):
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _draw(headers: Cells, rows: Sequence[Cells], right: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column, header in enumerate(headers):
        table.add_column(header, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        # As Text, since Rich reads square brackets in plain strings as markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
