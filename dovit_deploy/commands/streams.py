"""What happens when nobody takes what is printed? The work goes on, and the files are written all the same.

A reader that closes our stdout (`dovit ... | head -1`) has seen enough: the printing ends, the exit code is as
otherwise. A stdout that cannot take more (a full disk) is reported at the end. Nobody reads a stderr that fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


class KeptStream:
    """A text stream that never fails; after its first error it takes what is written to it and drops it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None
        """Why it is not written to any more."""

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        if self.problem is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self.problem = error
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write each of `lines`, or drop it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is buffered, or drop it."""
        if self.problem is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.problem = error

    def give_up(self) -> None:
        """Let what is still buffered go nowhere: Python itself would write it when it ends, and complain."""
        if self.problem is not None and self._stream in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextmanager
def kept_streams() -> Iterator[KeptStream]:
    """While the block runs, writing to stdout and stderr never fails; gives stdout, with its problem at the end."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        # Python has None where the number was closed when it started.
        output, errors = KeptStream(before[0] or nowhere), KeptStream(before[1] or nowhere)
        sys.stdout, sys.stderr = output, errors
        try:
            yield output
        finally:
            for stream in (output, errors):
                stream.flush()
                stream.give_up()
            sys.stdout, sys.stderr = before
