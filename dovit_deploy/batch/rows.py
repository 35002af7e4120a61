"""How is an archive divided? A row is a segment of a video, a few images of a folder, or a source as a whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.errors import SourceError, UsageError
from dovit_deploy.printing import printable
from dovit_deploy.record import Record
from dovit_deploy.sources.images import ImageSource
from dovit_deploy.sources.open import exact_seconds, open_source
from dovit_deploy.sources.segments import VideoSegment, index_from_packets, segments_of
from dovit_deploy.sources.source import FrameSelection, Source
from dovit_deploy.sources.video import VideoReader

IMAGES_A_ROW = 32
"""Images of a folder that are one row: what a worker that is killed does again."""


class Selected(Record):
    """Which frames of every source are read, as flags of `run` say it."""

    every: int = 1
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None
    recursive: bool = False
    max_pixels: int

    def opened(self, text: str) -> Source:
        """The source called `text`, opened; raises what `open_source` does."""
        return open_source(
            text,
            max_pixels=self.max_pixels,
            every=self.every,
            max_frames=self.max_frames,
            start=self.start,
            end=self.end,
            recursive=self.recursive,
        )

    def exact(self) -> FrameSelection:
        """The same, in exact seconds; raises UsageError where a span is none."""
        return FrameSelection(self.every, self.max_frames, exact_seconds(self.start), exact_seconds(self.end))


class ImageItem(Record):
    """An image of a source, and its position in it."""

    index: int
    path: str


class BatchRow(Record):
    """What one worker computes without a break."""

    source: int
    """Number of its source in the batch."""
    number: int
    """Of the row in its source."""
    text: str
    """The source, as `open_source` takes it."""
    images: tuple[ImageItem, ...] = ()
    segment: VideoSegment | None = None
    """Without it and without images the row is the whole source."""
    fingerprint: str
    """Of what lies there, when the batch was planned."""

    @property
    def name(self) -> str:
        """What its part is called, in the order of the rows."""
        whole = self.segment is None and not self.images
        return f"{self.source:06d}-whole" if whole else f"{self.source:06d}-{self.number:06d}"


@dataclass(frozen=True)
class BatchSource:
    """One source of a batch."""

    number: int
    text: str
    stem: str
    """The name of its results."""
    rows: tuple[BatchRow, ...]
    frames: int | None
    """How many it is expected to give."""
    note: str | None = None
    """Why it is one row, where a video could not be cut."""

    @property
    def video(self) -> bool:
        """Whether its frames have a time."""
        return not self.rows[0].images

    @property
    def whole(self) -> BatchRow:
        """All of it as one row."""
        fingerprint = self.rows[0].fingerprint
        return BatchRow(source=self.number, number=0, text=self.text, fingerprint=fingerprint)


def source_from_text(number: int, text: str, stem: str, selected: Selected, *, seconds: float) -> BatchSource:
    """A source divided into rows.

    Args:
        number: of the source in the batch.
        text: as `open_source` takes it.
        stem: the name of its results.
        selected: which frames are read.
        seconds: of a segment of a video.

    Raises:
        SourceError: it cannot be opened, or a name is no UTF-8 text.
        UsageError: it is a camera or stream, or a segment would be shorter than a frame.
    """
    _refuse_unwritable(text)
    with selected.opened(text) as source:
        if source.kind == "live" or "://" in text:
            raise UsageError(f"{source.name}: a batch takes files; a camera or stream is for dovit run")
        if isinstance(source, ImageSource):
            return BatchSource(number, text, stem, _image_rows(number, text, source), source.count)
        fingerprint = fingerprint_of([Path(text)])
        whole = BatchRow(source=number, number=0, text=text, fingerprint=fingerprint)
        if source.video is not None and seconds * source.video.rate < 1:
            raise UsageError(
                f"--segment-seconds {seconds:g}: shorter than a frame of {source.name}, "
                f"which lasts {float(1 / source.video.rate):.3f} s; give more"
            )
        if not isinstance(source, VideoReader):
            return BatchSource(
                number, text, stem, (whole,), source.count, "OpenCV reads it: install dovit-deploy[video] to cut it"
            )
        index = index_from_packets(source)
        if isinstance(index, str):
            return BatchSource(number, text, stem, (whole,), source.count, index)
        segments = segments_of(index, selected.exact(), seconds)
    rows = (
        BatchRow(source=number, number=position, text=text, segment=segment, fingerprint=fingerprint)
        for position, segment in enumerate(segments)
    )
    # A span without a frame is an error that reading it reports.
    return BatchSource(number, text, stem, tuple(rows) or (whole,), sum(segment.frames for segment in segments))


def _refuse_unwritable(name: str) -> None:
    # What goes to workers, and the tables, are UTF-8.
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise SourceError(f"{printable(name)}: its name is no UTF-8 text; rename it, or give it to dovit run")


def _image_rows(number: int, text: str, source: ImageSource) -> tuple[BatchRow, ...]:
    items = [ImageItem(index=index, path=str(path)) for index, path in source.wanted]
    for item in items:
        _refuse_unwritable(item.path)
    chunks = [tuple(items[begin : begin + IMAGES_A_ROW]) for begin in range(0, len(items), IMAGES_A_ROW)]
    return tuple(
        BatchRow(
            source=number,
            number=position,
            text=text,
            images=chunk,
            fingerprint=fingerprint_of([Path(item.path) for item in chunk]),
        )
        for position, chunk in enumerate(chunks)
    )


def opened_row(row: BatchRow, selected: Selected) -> Source:
    """What a row is read from: its own images, or its video."""
    if not row.images:
        return selected.opened(row.text)
    paths = [Path(item.path) for item in row.images]
    return ImageSource(paths, name=row.text, selection=FrameSelection(), max_pixels=selected.max_pixels)


def refuse_changed(row: BatchRow) -> None:
    """Raise SourceError where the files of a row are not those that the batch was planned with."""
    paths = [Path(item.path) for item in row.images] or [Path(row.text)]
    if fingerprint_of(paths) != row.fingerprint:
        raise SourceError(changed_message(row.text))


def changed_message(name: str) -> str:
    """What is said of a source that is not what it was."""
    return f"{name}: it was changed while it was read; run it again when it is complete"


def fingerprint_of(paths: Sequence[Path]) -> str:
    """Sizes and times of change of files, as one short text: other files, or files that were written to, have another.

    A file that cannot be looked at has none; whoever reads it says why.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            there = path.stat()
            facts = f"{there.st_size} {there.st_mtime_ns}"
        except OSError:
            facts = "-"
        digest.update(os.fsencode(path) + f"\0{facts}\0".encode())
    return digest.hexdigest()[:16]
