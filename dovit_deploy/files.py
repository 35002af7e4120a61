"""How does what we write appear? Whole or not at all, and never over what is not ours.

A folder or file is written under a name of its own, `NAME.<random>.partial`, beside its target, and renamed at the end;
`claims.py` sees to it that nobody else writes the same target meanwhile.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dovit_deploy.claims import (
    LONGEST_NAME,
    PARTIAL,
    PREVIOUS,
    claimed,
    claimed_free,
    name_that_fits,
    noted,
    real_path,
    remove,
)
from dovit_deploy.errors import OutputFailed, UsageError

ForeignCheck = Callable[[Path], str | None]
"""Why a folder is not ours to replace, as "it holds 'notes.txt'"; None: all of it was written by a verb of ours."""

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or write elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "write to a folder that is yours"),
    errno.EFBIG: "this system allows no larger file (ulimit -f), or the file system has none",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What fixes it, by the reason that the system gives."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Reasons that only writing can have."""


# What the disk refuses.


@contextmanager
def reported_writes(path: Path, *, kept: str = "") -> Iterator[None]:
    """Raise what the system refuses in the block (a full disk, a quota, no permission) as OutputFailed.

    Args:
        path: what is written in the block, for the message.
        kept: what is left of earlier work, for the message.
    """
    try:
        yield
    except OutputFailed as error:
        raise OutputFailed(f"{error}; {kept}") if kept else error from error.__cause__
    except OSError as error:
        raise _write_failure(path, error, kept=kept) from error


def refuse_unwritable(path: Path) -> None:
    """Raise OutputFailed where `path` could not be written after hours of work: no permission, or too long a name."""
    real = real_path(path)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in real.parts):
        raise _write_failure(path, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)))
    # The root has no parent.
    folder = next((parent for parent in real.parents if parent.exists()), real)
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise _write_failure(path, OSError(errno.EACCES, f"the folder {folder} cannot be written"))


def try_writing(path: Path) -> None:
    """Raise OutputFailed where no file can be made beside `path`, by making one and taking it away again."""
    real = real_path(path)
    aside = _working_path(real)
    with reported_writes(path), noted(aside, real):
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        aside.unlink()


@contextmanager
def optional_writes(what: str) -> Iterator[None]:
    """Let the work go on where a cache of ours cannot be written in the block; once a process a line says so.

    Args:
        what: is lost, as "kernels are compiled again".
    """
    try:
        yield
    except (OutputFailed, OSError) as error:
        if what not in _losses_named:
            import logging

            _losses_named.add(what)
            # Without a handler of the program's own, Python writes a warning to stderr as it is.
            logging.getLogger("dovit_deploy").warning("note: %s (%s)", what, error)


_losses_named: set[str] = set()


def _write_failure(path: Path, error: OSError, *, kept: str = "") -> OutputFailed:
    """The error that says why `path` cannot be written, and what to do."""
    ends = (REMEDIES.get(error.errno or 0, ""), kept)
    return OutputFailed("; ".join((f"cannot write {path}: {error.strerror or error}", *filter(None, ends))))


def _concerns(error: OSError, folder: Path) -> bool:
    """It came of writing in `folder`: of a file there, or of none by name, as when an open file finds no room."""
    # Decoders raise errors without a number.
    if error.errno is None:
        return False
    return not isinstance(error.filename, str | Path) or folder in (Path(error.filename), *Path(error.filename).parents)


# Only what is ours is replaced.


def refuse_inputs(target: Path, inputs: Iterable[str | Path | None], *, option: str = "-o") -> None:
    """Raise UsageError when `target` is one of the inputs or the current folder, or holds one of them."""
    real = real_path(target)
    for given in inputs:
        # An address is no path, and may carry a password that a message must not show.
        if given is not None and "://" not in str(given):
            there = real_path(given)
            if real == there or real in there.parents or _same_file(real, there):
                raise UsageError(f"{option} {target}: this is the input {given}, or holds the input; choose another")
    if real == Path.cwd() or real in Path.cwd().parents:
        raise UsageError(f"{option} {target}: this is the current folder, or holds it; choose another")


def _same_file(first: Path, second: Path) -> bool:
    """Two names of one file, as hard links are."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def refuse_existing(path: Path, *, overwrite: bool, mark: ForeignCheck) -> None:
    """Raise UsageError when `path` is there and must not be replaced: no `overwrite`, or it is not ours."""
    real = real_path(path)
    if not os.path.lexists(real):
        return
    if not overwrite:
        raise UsageError(f"{path} exists; choose another with -o, or allow it with --overwrite")
    reason = mark(real) if real.is_dir() else "it is no folder"
    if reason is not None:
        raise UsageError(f"{path} is not replaced: {reason}; choose another with -o, or move it away")


def first_foreign(folder: Path, expected: Callable[[str], bool]) -> str | None:
    """The first entry of `folder` that is a link or has an unexpected relative path, as a reason not to replace it."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *names)):
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()) or not expected(relative):
                return f"it holds '{relative}', which was not written by this command"
    return None


# Whole or not at all.


def _working_path(target: Path, suffix: str = PARTIAL) -> Path:
    """A name beside `target` that nobody can guess, so that no link lies in wait under it."""
    return target.with_name(name_that_fits(target.name, f".{os.urandom(4).hex()}{suffix}"))


@contextmanager
def written_aside(path: Path, *, overwrite: bool, mark: ForeignCheck) -> Iterator[Path]:
    """Give an empty folder to fill; rename it to `path` when the block ends well, else remove it.

    Where something that may not be replaced appeared at `path` meanwhile, the new folder gets a free name beside it.

    Args:
        path: the target; a link is followed.
        overwrite: replace what is there, if `mark` finds it ours.
        mark: says why what is there is not ours.

    Raises:
        UsageError: `path` exists and may not be replaced, or another run writes there.
        OutputFailed: the disk refuses the folder, or something in it.
    """
    with claimed(path):
        refuse_existing(path, overwrite=overwrite, mark=mark)
        with working_folder(path) as partial:
            yield partial
            with reported_writes(path):
                _put_or_keep(partial, path, overwrite=overwrite, mark=mark)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`, a target that was claimed, for what is needed on the way; it is removed when
    the block ends, after a kill by the next run of this target.

    Raises:
        OutputFailed: the disk refuses the folder, or something in it.
    """
    real = real_path(path)
    partial = _working_path(real)
    with noted(partial, real):
        try:
            with reported_writes(path):
                partial.mkdir(parents=True)
            yield partial
        except OSError as error:
            if _concerns(error, partial):
                raise _write_failure(path, error) from error
            raise
        finally:
            # Where even that is refused, the next run of this target tries again.
            with suppress(OSError):
                remove(partial)


def _put_or_keep(partial: Path, path: Path, *, overwrite: bool, mark: ForeignCheck) -> None:
    """`put_in_place`; what took long to make is not thrown away because somebody else took its name meanwhile."""
    real = real_path(path)
    try:
        refuse_existing(path, overwrite=overwrite, mark=mark)
        put_in_place(partial, real, replace=overwrite)
    except UsageError as taken:
        with claimed_free(real.with_name(name_that_fits(real.stem, f"-2{real.suffix}"))) as free:
            put_in_place(partial, free, replace=False)
        raise UsageError(f"{taken}. It was not there at the start; the results are in {free}") from taken


def put_in_place(partial: Path, path: Path, *, replace: bool = True) -> None:
    """Rename the folder `partial` to `path`; what was there before is removed last.

    Where the system can exchange two names, `path` is the old or the new folder at every moment; elsewhere the old
    one is set aside first, and after a kill between the two renames the next run puts it back.

    Raises:
        UsageError: something is there, and `replace` is off.
    """
    if not replace:
        _put_where_nothing_is(partial, path)
        return
    # After the exchange the old folder is the one that is called `partial`.
    if path.exists() and not path.is_symlink() and _renamed(partial, path, _EXCHANGE):
        remove(partial)
        return
    previous = _working_path(path, PREVIOUS)
    with noted(previous, path):
        if path.exists():
            path.rename(previous)
        try:
            partial.rename(path)
        except OSError:
            if previous.exists():
                previous.rename(path)
            raise
        remove(previous)


def _put_where_nothing_is(partial: Path, path: Path) -> None:
    # A plain rename would replace an empty folder that somebody made meanwhile.
    if _renamed(partial, path, _NO_REPLACE):
        return
    if os.path.lexists(path):
        raise UsageError(f"{path} exists; choose another with -o")
    partial.rename(path)


_NO_REPLACE, _EXCHANGE = 1, 2
"""RENAME_NOREPLACE and RENAME_EXCHANGE of Linux's `renameat2`."""


def _renamed(first: Path, second: Path, flag: int) -> bool:
    """Rename or exchange in one step, as Linux's `renameat2` can; False where the system cannot, or it failed."""
    if not sys.platform.startswith("linux"):
        return False
    # Not at the top: `--help` needs no library.
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here = -100  # AT_FDCWD
    return int(rename(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(flag))) == 0


def copy_folder(
    source: Path,
    folder: Path,
    *,
    without: Collection[str] = (),
    copy: Callable[[Path, Path], object] = shutil.copy2,
) -> None:
    """Copy what lies in `source` to the folder `folder`, which is there.

    The first refusal ends it, as the system's own error; `shutil.copytree` would make text of all of them.

    Args:
        source: the folder that is copied.
        folder: where to.
        without: names in `source` itself that are left out.
        copy: of one file.
    """
    for path in source.iterdir():
        target = folder / path.name
        if path.name in without:
            continue
        if path.is_dir():
            target.mkdir()
            copy_folder(path, target, copy=copy)
        else:
            copy(path, target)
    shutil.copystat(source, folder)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one with this content; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path`, so that a reader sees the old file or the new one; see `file_written_aside`.

    Raises:
        OutputFailed: it cannot be written; the old file is as it was, and nothing is left beside it.
    """
    with file_written_aside(path) as aside, aside.open("wb") as file:
        file.write(content)
        file.flush()
        # Otherwise a power cut could leave the new name with no content behind it. A pipe has no disk to wait for.
        if aside.is_file():
            os.fsync(file.fileno())


@contextmanager
def file_written_aside(path: Path) -> Iterator[Path]:
    """Give a new, empty file to fill; it replaces the file `path` when the block ends well.

    A link stays and the file that it points at is replaced; into a device, a pipe or the process's own output the
    content is copied.

    Raises:
        OutputFailed: it cannot be written; the old file is as it was, and nothing is left beside it.
    """
    real = real_path(path)
    through = _takes_no_rename(path)
    aside = _working_path(Path(tempfile.gettempdir(), "dovit") if through else real)
    with reported_writes(path), noted(aside, real):
        if real.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        # Never an existing file, and never through a link: the name is ours from here on.
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            if real.is_file() and not through:
                aside.chmod(stat.S_IMODE(real.stat().st_mode))
            yield aside
            if through:
                _copy_through(aside, path)
            else:
                aside.replace(real)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def _takes_no_rename(path: Path) -> bool:
    """It is a device or a pipe, or what this process prints to."""
    try:
        there = path.stat()
    except OSError:
        return False
    return not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)) or _stream(there) is not None


def _stream(there: os.stat_result) -> int | None:
    """The number of our own stream that writes there, as `--json /dev/stdout > FILE` asks for."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), there):
                return number
    return None


def _copy_through(source: Path, target: Path) -> None:
    stream = _stream(target.stat())
    # Opened a second time, a file would be written from its beginning, over what was printed already.
    if stream is not None:
        (sys.stdout if stream == 1 else sys.stderr).flush()
    # A reader that closes its end has seen enough: that ends the printing, not the work.
    with (
        suppress(BrokenPipeError),
        source.open("rb") as content,
        open(target if stream is None else stream, "wb", closefd=stream is None) as file,
    ):
        shutil.copyfileobj(content, file)
