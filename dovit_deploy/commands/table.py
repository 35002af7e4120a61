"""Tables on stdout: drawn in a terminal, plain aligned columns in a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dovit_deploy.commands import console

Row = Sequence[str]


def show_table(title: str, headers: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> None:
    """Print a table; the columns numbered in `right` hold numbers and are aligned to the right."""
    console.result(title)
    if sys.stdout.isatty():
        _draw(headers, rows, right)
        return
    for line in plain_lines(headers, rows, right=right):
        console.result(f"  {line}")


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
