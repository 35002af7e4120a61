"""How does text leave the process? Line by line, as a terminal can show it, and without secrets.

Names of files, classes and keys come from outside. A terminal obeys what it finds in them (colours, moves of the
cursor, the clipboard), a line break in a name reads as a line of ours, and a mark of direction turns the rest around.
Whatever is printed passes here: such characters appear escaped (`\\x1b`, `\\u202e`), addresses masked.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import traceback
from types import TracebackType
from typing import TextIO, TypeGuard

from dovit_deploy.credentials import masked

_NOT_SHOWN = re.compile(
    # Control characters (C0, DEL, C1), and what separates lines in Unicode.
    "[\x00-\x1f\x7f-\x9f\u2028\u2029"
    # Marks of direction and other characters without a width; joiners stay, since Persian and emoji are written so.
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f"
    # Halves of a pair, as bytes of a file's name that are no UTF-8 become in Python.
    "\ud800-\udfff]"
)


def printable(text: str) -> str:
    """`text` in one line, with every character escaped that a terminal would obey or could not show."""
    return _NOT_SHOWN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)


_LONGEST_WORD = 200


def shortened(text: str) -> str:
    """`text` with the middle left out of every word that has more than 200 characters."""
    half = _LONGEST_WORD // 2 - 2
    return re.sub(rf"(\S{{{half}}})\S{{5,}}(\S{{{half}}})", r"\1...\2", text)


def print_results(*lines: str) -> None:
    """Lines of results, on stdout."""
    _print(sys.stdout, lines)


def print_remarks(*lines: str) -> None:
    """Lines about what is going on, errors too, on stderr."""
    _print(sys.stderr, lines)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback on stderr, as `sys.excepthook` prints it; a line break in a message stays one."""
    print_remarks(*"".join(traceback.format_exception(kind, error, trace)).splitlines())


def _print(stream: TextIO | None, lines: tuple[str, ...]) -> None:
    if _is_open(stream):
        stream.write("".join(f"{printable(masked(line))}\n" for line in lines))


def is_terminal() -> bool:
    """Whether results are read by a person."""
    return _is_open(sys.stdout) and sys.stdout.isatty()


def _is_open(stream: TextIO | None) -> TypeGuard[TextIO]:
    # Python has no stream where a process was started with it closed.
    return stream is not None and not stream.closed


def prepare_streams() -> None:
    """Make sure that printing cannot fail for want of a letter or of a stream; called once, before anything is opened.

    A letter that the stream's encoding lacks is escaped. A standard stream that was closed leads nowhere: otherwise
    the first file that is opened takes its number, and what a library prints lands in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, so this one.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A stream that was closed meanwhile cannot be changed, and need not be.
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="backslashreplace")


def quote(text: str) -> str:
    """`text` as one word of a suggested command, to be pasted into a shell.

    What would be escaped in print is written as the shell's own escapes, `$'a\\012b'`, so that the command still
    means the file.
    A path that begins with a dash is written as `./-x`, since it would be taken for a flag.
    """
    word = f"./{text}" if text.startswith("-") else text
    if not _NOT_SHOWN.search(word):
        return shlex.quote(word)
    escaped = "".join(_shell_escape(letter) for letter in word)
    return f"$'{escaped}'"


def _shell_escape(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if not _NOT_SHOWN.match(letter):
        return letter
    # Bytes, since what `\\u` means depends on the shell's language; three digits each, so that none runs on.
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))


def plural(count: int, noun: str, several: str | None = None) -> str:
    """ "1 frame", "2 frames"; `several` where an s is not enough."""
    return f"{count} {noun if count == 1 else several or noun + 's'}"
