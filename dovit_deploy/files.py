"""Files and folders that appear whole or not at all: written as `NAME.partial`, renamed at the end."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dovit_deploy.errors import InputError, UsageError


def partial_path(path: Path) -> Path:
    """The name of `path` while it is being written."""
    return path.with_name(path.name + ".partial")


def free_path(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... when that is taken."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError when `path` is there and must not be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another with -o, or allow it with --overwrite")


@contextmanager
def written_aside(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder `NAME.partial` to fill; rename it to `path` when the block ends well, else remove it.

    Raises:
        UsageError: `path` exists and `overwrite` is off.
        InputError: the folder cannot be created.
    """
    refuse_existing(path, overwrite=overwrite)
    partial = partial_path(path)
    make_fresh(partial)
    try:
        yield partial
        put_in_place(partial, path)
    finally:
        remove(partial)


def make_fresh(folder: Path) -> None:
    """Make `folder`, empty, with its parents; what a killed process left there is removed."""
    try:
        remove(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def put_in_place(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; what was there before is removed last.

    Where the system can exchange two names, `path` is the old or the new folder at every moment; elsewhere the old
    one is set aside first, and a kill between the two renames leaves it as `NAME.previous`.
    """
    # After the exchange the old folder is the one that is called `partial`.
    if path.exists() and not path.is_symlink() and _exchanged(partial, path):
        remove(partial)
        return
    previous = path.with_name(path.name + ".previous")
    if path.exists():
        remove(previous)
        path.rename(previous)
    try:
        partial.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    remove(previous)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two names in one step, as Linux's `renameat2` can; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return int(rename(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(exchange))) == 0


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one with this content; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path`, so that a reader sees the old file or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was, and nothing is left beside it.
    """
    with file_written_aside(path) as aside, aside.open("wb") as file:
        file.write(content)
        file.flush()
        # Otherwise a power cut could leave the new name with no content behind it. A pipe has no disk to wait for.
        if aside.is_file():
            os.fsync(file.fileno())


@contextmanager
def file_written_aside(path: Path) -> Iterator[Path]:
    """Give the name `NAME.partial` to write a file under; it replaces `path` when the block ends well.

    A link stays one: the file that it names is replaced. A device or a pipe is given as it is, to be written into.

    Raises:
        OSError: it cannot be written; the old file is as it was, and nothing is left beside it.
    """
    # A rename onto /dev/null or /dev/stdout would take them from every process of the machine.
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    aside = partial_path(target)
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
