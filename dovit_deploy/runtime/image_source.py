"""Images as a source: one file, or many in order of their names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.closing import Closing
from dovit_deploy.runtime.frame_source import FailedFrame, Kind, Selection
from dovit_deploy.runtime.images import read_image
from dovit_deploy.runtime.results import Frame


class ImageSource(Closing):
    """Image files; a bad one becomes a FailedFrame and does not stop the rest."""

    kind: Kind = "images"
    video = None
    ended_early = None

    def __init__(self, paths: Sequence[Path], *, name: str, selection: Selection, max_pixels: int) -> None:
        self.name = name
        self.warnings: list[str] = []
        self.count = selection.thin(len(paths))
        self._max_pixels = max_pixels
        self._wanted = list(enumerate(paths))[:: selection.every][: selection.max_frames]
        self.paths = tuple(path for _, path in self._wanted)

    def __iter__(self) -> Iterator[Frame | FailedFrame]:
        for index, path in self._wanted:
            try:
                yield _frame_from_file(path, index=index, max_pixels=self._max_pixels)
            except SourceError as error:
                yield FailedFrame(source=str(path), message=str(error), index=index)

    def close(self) -> None:
        """Nothing is held open between pictures."""


class SingleImage(ImageSource):
    """One image, decoded at once: where it is all there is, a bad file must be known before anything starts.

    Raises:
        SourceError: the image cannot be read.
    """

    def __init__(self, path: Path, *, name: str, selection: Selection, max_pixels: int) -> None:
        super().__init__([path], name=name, selection=selection, max_pixels=max_pixels)
        self._frame = _frame_from_file(path, index=0, max_pixels=max_pixels)

    def __iter__(self) -> Iterator[Frame | FailedFrame]:
        yield self._frame


def _frame_from_file(path: Path, *, index: int, max_pixels: int) -> Frame:
    began = time.perf_counter()
    rgb = read_image(path, max_pixels=max_pixels)
    decode_ms = (time.perf_counter() - began) * 1e3
    return Frame(rgb=rgb, index=index, source=str(path), time_s=Fraction(0), decode_ms=decode_ms)
