"""What the command line prints: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from rich.console import Console

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.files import write_text

Json = Mapping[str, object]


def errors_console() -> Console:
    """Where progress goes; made anew so that a redirected stderr is respected."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def result(text: str) -> None:
    """A line of results."""
    sys.stdout.write(text + "\n")


def remark(text: str, *, quiet: bool) -> None:
    """A line about what is going on."""
    if not quiet:
        sys.stderr.write(text + "\n")


def next_command(command: str, *, quiet: bool) -> None:
    """The next useful command, with real paths in it."""
    remark(f"next: {command}", quiet=quiet)


def write_json(path: Path | None, report: Json) -> None:
    """Write `report` to `path`, whole or not at all; nothing for None."""
    if path is None:
        return
    try:
        write_text(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: Path | None, *, given: Path | None = None) -> None:
    """Refuse early a report file that could not be written after a long run, or that is the input `given`."""
    if path is None:
        return
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"--json {path}: a file in an existing folder is needed")
    if given is not None and path.resolve() == given.resolve():
        raise UsageError(f"--json {path}: this is the input; choose another file")


@contextmanager
def progress_bar(*, total: int | None, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on stderr with frames a second and mean FLOPs saved; gives the function to call after each frame."""
    if quiet:
        yield lambda saved: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} fps"),
        TextColumn("FLOPs saved {task.fields[saved]:.0%}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors_console(), transient=True) as progress:
        task = progress.add_task("", total=total, rate=0.0, saved=0.0)
        start, seen, saved_sum = perf_counter(), 0, 0.0

        def advance(saved: float) -> None:
            nonlocal seen, saved_sum
            seen, saved_sum = seen + 1, saved_sum + saved
            rate = seen / max(perf_counter() - start, 1e-9)
            progress.update(task, advance=1, rate=rate, saved=saved_sum / seen)

        yield advance


# Tables on stdout: drawn in a terminal, plain aligned columns in a file or a pipe.

Row = Sequence[str]


def show_table(title: str, headers: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> None:
    """Print a table; the columns numbered in `right` hold numbers and are aligned to the right."""
    result(title)
    if sys.stdout.isatty():
        _draw(headers, rows, right)
        return
    for line in plain_lines(headers, rows, right=right):
        result(f"  {line}")


def plain_lines(headers: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> list[str]:
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


def _draw(headers: Row, rows: Sequence[Row], right: Sequence[int]) -> None:
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
