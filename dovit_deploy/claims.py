"""Who writes a target? One thread of one process at a time; what it leaves when it is killed is tidied up by the next.

The locks lie in the user's state folder (XDG_STATE_HOME), named by a digest of the target's real path, so that none is
left beside the target.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dovit_deploy.errors import EnvironmentProblem, UsageError

# Locks are taken when a verb writes; what is behind them, hashlib too, would keep `--help` waiting.
if TYPE_CHECKING:
    import filelock

PARTIAL, PREVIOUS = ".partial", ".previous"
"""How the names end of what is being written, and of what is being replaced where names cannot be exchanged."""
GUARD_S = 30.0
"""Seconds to wait for the guard of the locks, which is held for a few milliseconds at a time."""


def real_path(path: str | Path) -> Path:
    """`path` made absolute, links followed; where it leads to a link in a loop, that link."""
    # Not `Path.resolve`, which raises for a loop in some versions of Python.
    return Path(os.path.realpath(path))


LONGEST_NAME = 255
"""Bytes of a file's name on the usual file systems."""


def name_that_fits(stem: str, rest: str = "") -> str:
    """`stem` + `rest` as a name that file systems take: the stem gives way, by whole characters."""
    if len(os.fsencode(stem + rest)) <= LONGEST_NAME:
        return stem + rest
    room = LONGEST_NAME - len(os.fsencode(rest))
    return os.fsencode(stem)[:room].decode(sys.getfilesystemencoding(), "ignore") + rest


@dataclass
class _Claim:
    """A target that a thread of this process writes."""

    lock: filelock.BaseFileLock
    thread: int
    depth: int = 1
    asides: dict[str, str] = field(default_factory=dict)
    """Working name -> what it is written for; also on disk beside the lock, for the next process after a kill."""

    @property
    def record(self) -> Path:
        return Path(self.lock.lock_file).with_suffix(".json")


_claims: dict[Path, _Claim] = {}
_claims_change = threading.Lock()


@contextmanager
def claimed(path: Path, *, option: str = "-o") -> Iterator[None]:
    """Be the only one that writes the target `path`; the same thread may claim it again.

    What a killed process left of this target is removed first.

    Args:
        path: the target.
        option: the flag that names it.

    Raises:
        UsageError: another run writes there now.
        EnvironmentProblem: no lock can be held on this machine.
    """
    real = real_path(path)
    if not _claim(real):
        raise UsageError(
            f"{path} is in use: another run writes here; wait for its end, or choose another with {option}"
        )
    try:
        yield
    finally:
        _release(real)


@contextmanager
def claimed_free(path: Path) -> Iterator[Path]:
    """Claim `path`, or the first of `path-2`, `path-3`, ... that neither exists nor is being written; give it."""
    for number in itertools.count(1):
        candidate = path.with_name(name_that_fits(path.name, "" if number == 1 else f"-{number}"))
        real = real_path(candidate)
        if os.path.lexists(candidate) or not _claim(real):
            continue
        try:
            # Looked at again: another run may have ended between the look and the claim.
            if not os.path.lexists(candidate):
                yield candidate
                return
        finally:
            _release(real)


def _claim(real: Path) -> bool:
    """False when another process or thread has it."""
    thread = threading.get_ident()
    with _claims_change:
        held = _claims.get(real)
        if held is not None:
            held.depth += held.thread == thread
            return held.thread == thread
        lock = _locked(real)
        if lock is None:
            return False
        _claims[real] = claim = _Claim(lock, thread)
        _recover(claim.record)
        return True


def _release(real: Path) -> None:
    import filelock

    with _claims_change:
        claim = _claims[real]
        claim.depth -= 1
        if claim.depth:
            return
        del _claims[real]
        lock = Path(claim.lock.lock_file)
        with suppress(OSError, filelock.Timeout), filelock.FileLock(lock.with_name("guard"), timeout=GUARD_S):
            # Locks are taken under the guard alone, so nobody has opened the file that goes away here.
            lock.unlink(missing_ok=True)
        claim.lock.release()


def _locked(real: Path) -> filelock.BaseFileLock | None:
    """The lock of the target `real`, held; None when another process holds it."""
    import hashlib

    import filelock

    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    problems = []
    for folder in _lock_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
                # In the folder of temporary files anybody could have made it, to have us write through links of theirs.
                raise PermissionError(errno.EACCES, "it belongs to another user")
            lock = filelock.FileLock(folder / f"{name}.lock")
            with filelock.FileLock(folder / "guard", timeout=GUARD_S):
                lock.acquire(timeout=0)
            return lock
        except filelock.Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            problems.append(f"{folder}: {getattr(error, 'strerror', None) or error}")
    raise EnvironmentProblem(f"cannot lock the output ({'; '.join(problems)}); name a folder with XDG_STATE_HOME")


def _lock_folders() -> tuple[Path, Path]:
    """The user's state folder, and what serves where that cannot be written, as in a container without a home."""
    import platformdirs

    user = os.getuid() if hasattr(os, "getuid") else "user"
    return (
        Path(platformdirs.user_state_path("dovit-deploy")) / "locks",
        Path(tempfile.gettempdir()) / f"dovit-deploy-{user}-locks",
    )


def _recover(record: Path) -> None:
    """Put back or remove what the record of a killed process names, and the record."""
    try:
        left = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return
    for name, target in left.items():
        aside = Path(name)
        with suppress(OSError):
            if aside.suffix == PREVIOUS and not os.path.lexists(target):
                aside.rename(target)
            elif aside.suffix in (PARTIAL, PREVIOUS):
                remove(aside)
    with suppress(OSError):
        record.unlink()


@contextmanager
def noted(aside: Path, target: Path) -> Iterator[None]:
    """While the block runs, a kill would leave `aside`: recorded with the claim that `target` belongs to, if any."""
    here = threading.get_ident()
    found = (_claims.get(path) for path in (target, *target.parents))
    claim = next((entry for entry in found if entry is not None and entry.thread == here), None)
    if claim is None:
        yield
        return
    claim.asides[str(aside)] = str(target)
    # Not worth an error: without it only the tidying up after a kill is lost.
    with suppress(OSError):
        claim.record.write_text(json.dumps(claim.asides), encoding="utf-8")
    try:
        yield
    finally:
        del claim.asides[str(aside)]
        with suppress(OSError):
            if claim.asides:
                claim.record.write_text(json.dumps(claim.asides), encoding="utf-8")
            else:
                claim.record.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
