"""Where may a verb write? What cannot be is refused before any work; the rest is claimed until the verb ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.claims import claimed, claimed_free, name_that_fits, real_path
from dovit_deploy.errors import UsageError
from dovit_deploy.files import ForeignCheck, refuse_existing, refuse_inputs, refuse_unwritable, try_writing
from dovit_deploy.signatures import head_of

Inputs = Iterable[str | Path | None]
"""What a verb reads: paths, or addresses and globs, which are no paths; None where a flag was not given."""

_until_the_end = ExitStack()


def release() -> None:
    """Give up all that was claimed: the verb has ended."""
    _until_the_end.close()


def beside(checkpoint: Path, *, added: str = "") -> Path:
    """The bundle that is made of `checkpoint` where no `-o` says otherwise: NAME.dovit beside it, or NAME, what is
    `added`, and .dovit; raises UsageError where it has no name."""
    # "." and ".." have no name to call a bundle by.
    named = checkpoint if checkpoint.name not in ("", "..") else checkpoint.resolve()
    if not named.name:
        raise UsageError(f"{checkpoint} has no name to call the bundle by; give one with -o NAME.dovit")
    return named.with_name(name_that_fits(named.stem, f"{added}.dovit"))


def claim_bundle(output: Path | None, checkpoint: Path, *, inputs: Inputs, overwrite: bool, added: str = "") -> Path:
    """Claim where the bundle of `checkpoint` goes, before that is read: `output`, else `beside` it.

    Raises:
        UsageError: it is not called NAME.dovit, or as `claim_folder`.
    """
    from dovit_deploy.bundle.bundle import foreign_in_bundle

    target = output or beside(checkpoint, added=added)
    if target.suffix != ".dovit":
        raise UsageError(f"-o: '{target}' given; a bundle is called NAME.dovit")
    return claim_folder(target, inputs=inputs, overwrite=overwrite, mark=foreign_in_bundle)


def claim_folder(path: Path, *, inputs: Inputs, overwrite: bool, mark: ForeignCheck) -> Path:
    """Claim the folder of `-o`, before anything is read.

    Raises:
        UsageError: another run writes there, it is or holds an input, it lies in a bundle, or it exists and may not be
            replaced.
    """
    from dovit_deploy.bundle.bundle import refuse_inside_bundle

    refuse_inputs(path, inputs)
    refuse_inside_bundle(path, option="-o")
    claim(path)
    refuse_existing(path, overwrite=overwrite, mark=mark)
    return path


def claim(path: Path) -> None:
    """Claim a target that the verb itself checks; UsageError when another run writes there."""
    refuse_unwritable(path)
    _until_the_end.enter_context(claimed(path))


def claim_free_folder(path: Path) -> Path:
    """Claim a default name: `path`, or `path-2`, `path-3`, ... when that is taken or another run writes there."""
    refuse_unwritable(path.parent / "x")
    return _until_the_end.enter_context(claimed_free(path))


@dataclass(frozen=True)
class ReportKind:
    """What lies in the file of a report, and so what a new one may replace."""

    name: str
    """What ours is called: "this file is no JSON"."""
    begins: Callable[[bytes], bool]
    """Of the first bytes of a file, without white space around them: they may be those of ours."""


JSON = ReportKind("JSON", lambda head: head.startswith(b"{"))


def claim_report(
    path: Path | None,
    *,
    inputs: Inputs = (),
    outputs: Iterable[Path | None] = (),
    option: str = "--json",
    kind: ReportKind = JSON,
) -> None:
    """Claim the file of a report; nothing for None, and devices and pipes are for everybody.

    Args:
        path: the file, as given.
        inputs: what the verb reads.
        outputs: the folders that it writes; None where it does not write one.
        option: the flag that names the file.
        kind: what is written.

    Raises:
        UsageError: it could not be written after a long run, it is an input, holds something else than a report, lies
            in an output or in a bundle, or another run writes there.
        OutputFailed: no file can be made there.
    """
    if path is None:
        return
    real = real_path(path)
    if not real.parent.is_dir() or path.is_dir():
        raise UsageError(f"{option} {path}: a file in an existing folder is needed")
    if path.exists() and not path.is_file():
        return
    from dovit_deploy.bundle.bundle import refuse_inside_bundle

    given = [entry for entry in inputs if entry is not None]
    refuse_inputs(path, given, option=option)
    # A new file beside the images of an input does no harm; one of them may not be replaced.
    if path.exists() and any(real_path(entry) in real.parents for entry in given):
        raise UsageError(f"{option} {path}: this file belongs to the input; choose another")
    # Whatever else is read, behind a glob, a link or a list, is of another kind.
    if (head := head_of(path).strip()) and not kind.begins(head):
        raise UsageError(
            f"{option} {path}: this file is no {kind.name}, and is not replaced; choose another, or move it away"
        )
    for output in outputs:
        if output is not None and real_path(output) in (real, *real.parents):
            raise UsageError(f"{option} {path}: this is the output folder {output}, or lies in it; choose another")
    refuse_inside_bundle(path, option=option)
    refuse_unwritable(path)
    _until_the_end.enter_context(claimed(path, option=option))
    # Permissions do not say everything: a file system may take no new file from anybody.
    try_writing(path)
