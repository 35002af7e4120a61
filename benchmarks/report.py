"""What benchmarks share: facts beside the figures of a result, the published command, and tables in pages."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from dovit_deploy.machine import machine_facts, package_versions

END = "<!-- end of table -->"
"""The line behind every table."""


def publish(figures: dict[str, object], *, command: str, output: Path | None) -> dict[str, object]:
    """Print the report as JSON, write it to `output` too where that is given, and return it."""
    report = {**circumstances(command), **figures}
    text = json.dumps(report, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
    return report


def circumstances(command: str) -> dict[str, object]:
    """What stands beside the figures of every result."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_facts(),
        "versions": package_versions(),
    }


def command_text(script: str, words: Sequence[str]) -> str:
    """The command line of `benchmarks/SCRIPT` as it is published: files outside the project by their names alone."""
    shown = [Path(word).name if word.startswith(("/", "../", "~")) else word for word in words]
    return shlex.join(["python", f"benchmarks/{script}", *shown])


def write_table(page: Path, start: str, table: str) -> None:
    """Replace the table behind `start` in the file `page`; ValueError, and nothing written, where a mark is missing."""
    page.write_text(between_marks(page.read_text(encoding="utf-8"), start, table), encoding="utf-8")


def between_marks(text: str, start: str, table: str) -> str:
    """`text` with what is between `start` and the next end mark replaced by `table`.

    Raises:
        ValueError: a mark is missing.
    """
    before, found, rest = text.partition(start)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"no '{start}' with '{END}' behind it")
    return f"{before}{start}\n{table}\n{END}{after}"
