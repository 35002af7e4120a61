"""What is kept of a batch until its results are whole? A folder `NAME.batch` beside the folder of the results.

    batch.json   what the batch was asked for, and what the driver chose; written first
    parts/       what workers leave (parts.py)
    results/     a folder for each source that is merged
    tables/      a row of figures for each of its frames

A batch that was killed at any moment goes on from it. It is bound to what it began with: another bundle, other
settings or other sources are refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from dovit_deploy import __version__
from dovit_deploy.batch.parts import PartMarker, marker_of
from dovit_deploy.batch.rows import BatchRow, BatchSource
from dovit_deploy.claims import name_that_fits, remove
from dovit_deploy.documents import bytes_of_document
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.files import first_foreign, refuse_existing, reported_writes, working_folder, write_text
from dovit_deploy.record import Record
from dovit_deploy.runtime.latency import LatencyModel

SUFFIX = ".batch"
RECORD, PARTS, RESULTS, TABLES = "batch.json", "parts", "results", "tables"


class BatchAsked(Record):
    """What a batch was asked for, as far as it bears on what is computed or written."""

    bundle: str
    """Digest of what it computes, and its class names."""
    sources: tuple[str, ...]
    flags: dict[str, str]
    """Name -> value, as given."""


class ChosenOnce(Record):
    """What the driver chose for all workers."""

    engine: str
    precision: str
    threads: int | None
    """Of each window; None leaves it to the engine."""
    windows: int
    """Of an image, at once."""
    dense: bool
    latency: LatencyModel | None = None
    """By which a deadline is kept."""
    rounds: int = 1

    def digest(self, asked: BatchAsked) -> str:
        """Of everything that an answer depends on."""
        return hashlib.sha256(f"{asked.model_dump_json()}{self.model_dump_json()}".encode()).hexdigest()[:16]


class BatchRecord(Record):
    """What a batch began with."""

    tool: str = f"dovit-deploy {__version__}"
    asked: BatchAsked
    chosen: ChosenOnce


class MergeNote(Record):
    """What is known of a source whose result is whole."""

    frames: int
    saved: float
    """Sum over the frames of the fraction of the FLOPs that was saved."""
    failed: int
    """Images of it that could not be read."""
    ended_early: str | None
    """Why a video gave fewer frames than it promised."""
    mixed: str | None
    """In what the machines or versions differ that computed its parts."""


def folder_of(target: Path) -> Path:
    """Where what is on the way to the results `target` is kept."""
    return target.with_name(name_that_fits(target.name, SUFFIX))


def foreign_in_working(folder: Path) -> str | None:
    """Why `folder` is no batch of ours that may be removed or replaced; None: it is one."""
    if not (folder / RECORD).is_file():
        return f"it has no {RECORD}"
    begins = (RECORD, *(f"{name}/" for name in (PARTS, RESULTS, TABLES)))
    return first_foreign(folder, lambda path: path.startswith(begins) or path in (PARTS, RESULTS, TABLES))


def refuse_begun(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError where a batch was begun at `path` and is not to be begun again."""
    if (path / RECORD).is_file() and not overwrite:
        raise UsageError(
            f"{path} holds a batch that was not finished; go on with it: --resume, or begin again: --overwrite"
        )
    refuse_existing(path, overwrite=overwrite, mark=foreign_in_working)


class BatchFolder:
    """A batch's folder, created with its record or opened to go on."""

    def __init__(self, path: Path, record: BatchRecord) -> None:
        self.path, self.record = path, record
        self.parts, self.results, self.tables = path / PARTS, path / RESULTS, path / TABLES

    @classmethod
    def create(cls, path: Path, record: BatchRecord) -> BatchFolder:
        """A new folder, which appears with its record in it; what `refuse_begun` allows to be replaced is.

        Raises:
            OutputFailed: the disk refuses it.
        """
        with working_folder(path) as folder, reported_writes(path):
            for name in (PARTS, RESULTS, TABLES):
                (folder / name).mkdir()
            write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
            remove(path)
            folder.rename(path)
        return cls(path, record)

    @classmethod
    def open(cls, path: Path) -> BatchFolder:
        """A folder made by `create`; InputError when it holds no readable record."""
        try:
            record = BatchRecord.model_validate_json(bytes_of_document(path / RECORD))
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise InputError(
                f"{path}: nothing to go on with, {RECORD} cannot be read ({reason}); begin without --resume"
            ) from error
        return cls(path, record)

    @property
    def several(self) -> bool:
        """Whether several sources were asked for: the results of one are those of a run, without a folder around."""
        return len(self.record.asked.sources) > 1

    def refuse_other(self, asked: BatchAsked) -> None:
        """Raise UsageError where this batch was asked for something else."""
        begun = self.record.asked
        if begun == asked:
            return
        what = "another bundle" if begun.bundle != asked.bundle else "other sources"
        if begun.flags != asked.flags:
            names = sorted({name for name, _ in begun.flags.items() ^ asked.flags.items()})
            what = f"another value of {', '.join(names)}"
        raise UsageError(f"--resume: {self.path} was begun with {what}; give the same, or begin again: --overwrite")

    def marker(self, row: BatchRow) -> PartMarker | None:
        """The marker of a row that is done, of the files that are there now and of this batch's settings."""
        marker = marker_of(self.parts, row.name)
        if marker is None or marker.fingerprint != row.fingerprint:
            return None
        wanted = self.record.chosen.digest(self.record.asked)
        return marker if marker.origin.settings == wanted else None

    def note_uncut(self, source: BatchSource) -> None:
        """Remember that a video cannot be cut; what was computed of its segments goes."""
        write_text(self.parts / f"{source.number:06d}.uncut", "")
        self.clear(source.rows)

    def is_uncut(self, source: BatchSource) -> bool:
        """Whether that was found before."""
        return (self.parts / f"{source.number:06d}.uncut").is_file()

    def result(self, source: BatchSource) -> Path:
        """Where the results of a source are, once they are whole."""
        return self.results / source.stem

    def keep_note(self, source: BatchSource, note: MergeNote) -> None:
        """Its result is whole, and counts from here on."""
        write_text(self.tables / f"{source.number:06d}.json", note.model_dump_json() + "\n")

    def note(self, source: BatchSource) -> MergeNote | None:
        """What `keep_note` was given; None: the source has no whole result."""
        try:
            note = MergeNote.model_validate_json((self.tables / f"{source.number:06d}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return note if self.result(source).is_dir() else None

    def remove_result(self, source: BatchSource) -> None:
        """Remove what there is of a result."""
        with reported_writes(self.results):
            remove(self.result(source))

    def table(self, source: BatchSource) -> Path:
        """Its figures."""
        return self.tables / f"{source.number:06d}.parquet"

    def clear(self, rows: tuple[BatchRow, ...]) -> None:
        """Remove the parts of rows, also what killed attempts left of them."""
        with reported_writes(self.parts):
            for row in rows:
                # The marker first: without it nothing of the row counts.
                remove(self.parts / f"{row.name}.json")
                for path in self.parts.glob(f"{row.name}.*"):
                    remove(path)

    def remove(self) -> None:
        """The results are in place: nothing of this is needed any more."""
        if foreign_in_working(self.path) is None:
            with reported_writes(self.path):
                remove(self.path)
