"""What benchmarks share: facts beside the figures of a result, the published command, tables in pages, and errors.

A measurement takes minutes: what is wrong with the words of a command is found before it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dovit_deploy.errors import DovitError, InputError
from dovit_deploy.files import write_text
from dovit_deploy.machine import machine_facts, package_versions

ENGINE_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
"""As pages write them."""

END = "<!-- end of table -->"
"""The line behind every table."""


def publish(figures: dict[str, object], *, command: str, output: Path | None) -> dict[str, object]:
    """Print the report as JSON, write it to `output` too where that is given, and return it."""
    report = {**circumstances(command), **figures}
    text = json.dumps(report, indent=1)
    print(text)
    if output is not None:
        write_text(output, text + "\n")
    return report


def read_figures(path: Path, *, names: Collection[str]) -> dict[str, Any]:
    """What `publish` wrote.

    Raises:
        InputError: it cannot be read, or lacks one of `names`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    missing = sorted(set(names) - set(report if isinstance(report, dict) else ()))
    if missing:
        raise InputError(f"{path} is no result of this benchmark: it has no {', '.join(missing)}")
    return dict(report)


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """End the script as `dovit` ends: an error that a user can cause is a line on stderr and an exit code."""
    try:
        yield
    except DovitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def at_least(least: int) -> Callable[[str], int]:
    """A type for `argparse`: whole numbers from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} given, at least {least} is needed")
        return int(text)

    return number


def output_file(text: str) -> Path:
    """A type for `argparse`: a file that can be written."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def page_with(start: str) -> Callable[[str], Path]:
    """A type for `argparse`: a page with a table behind the mark `start`."""

    def page(text: str) -> Path:
        try:
            between_marks(Path(text).read_text(encoding="utf-8"), start, "")
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{text} cannot take the table: {error}") from error
        return Path(text)

    return page


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
