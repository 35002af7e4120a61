"""What every benchmark's result says beside its figures, and where its tables stand in the pages."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dovit_deploy.machine import machine_facts, package_versions

END = "<!-- end of table -->"
"""Closes the place of every table."""


def publish(figures: dict[str, object], *, command: str, output: Path | None) -> dict[str, object]:
    """Print the report as JSON, write it to `output` too where that is given, and return it."""
    report: dict[str, object] = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_facts(),
        "versions": package_versions(),
        **figures,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
    return report


def between_marks(text: str, start: str, table: str) -> str:
    """`text` with what stands between `start` and the next end mark replaced by `table`.

    Raises:
        ValueError: a mark is missing.
    """
    before, found, rest = text.partition(start)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"no '{start}' with '{END}' behind it")
    return f"{before}{start}\n{table}\n{END}{after}"
