"""Who looked at what was to stay unseen? Every look, noted beside what was frozen before it is taken."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from dovit_deploy.documents import fault_of, read_text
from dovit_deploy.errors import CheckError, InputError
from dovit_deploy.files import write_text
from dovit_deploy.record import Record

LOOKS = "looks.json"
"""In the folder of what is frozen, for all of that: who freezes again has one log."""


class Look(Record):
    """A measurement of weights on a split that was to stay unseen."""

    reads: str
    """The split."""
    frozen: str | None
    """Digest of what was frozen; None: weights beside it, as of a recipe that is tried on each drive."""
    weights: str
    """SHA-256."""
    seed: int | None
    """Of the run; None: of a bundle, which does not say."""
    command: str
    date: str = Field(default_factory=lambda: time.strftime("%Y-%m-%d"))


_LIST = TypeAdapter(tuple[Look, ...])


def looks_in(folder: Path) -> tuple[Look, ...]:
    """Every look that was taken at what is frozen in `folder`, in its order; InputError where that cannot be read."""
    log = folder / LOOKS
    if not log.exists():
        return ()
    try:
        return _LIST.validate_json(read_text(log))
    except (OSError, ValueError) as error:
        reason = fault_of(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{log}: cannot be read as looks that were taken ({reason})") from error


def note_look(folder: Path, look: Look, *, again: bool = False) -> int:
    """Write down a look that is about to be taken; how many there are with it.

    Before it is taken: an evaluation that is interrupted has shown something all the same.

    Args:
        folder: of what is frozen.
        look: this one.
        again: the same weights may be looked at again, as where the first look was interrupted.

    Raises:
        CheckError: these weights, or others of this seed and choice, were read before.
    """
    looks = looks_in(folder)
    for old in looks:
        if old.reads == look.reads and old.weights == look.weights and not again:
            raise CheckError(f"these weights were read on {old.date}, by {old.command}")
        same_choice = look.frozen is not None and (old.frozen, old.seed) == (look.frozen, look.seed)
        if same_choice and old.weights != look.weights:
            raise CheckError(
                f"weights of seed {look.seed} were read on {old.date}, by {old.command}; "
                "a seed is read once, however often it is trained"
            )
    content = [one.model_dump(mode="json") for one in (*looks, look)]
    write_text(folder / LOOKS, json.dumps(content, indent=1) + "\n")
    return len(content)


def check_committed(path: Path) -> None:
    """Raise CheckError unless `path` is committed as it stands: only a history shows what came first."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, check=False
        )
    except OSError as error:
        raise CheckError(f"{path}: whether it is committed cannot be asked (git: {error.strerror})") from error
    if shown.returncode or shown.stdout != path.read_bytes():
        raise CheckError(f"{path} is not committed as it stands; commit it, then take the look")
