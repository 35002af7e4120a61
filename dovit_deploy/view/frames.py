"""Which frame is meant? Images by number, frames of a video by their time, what is dropped on the page by its key."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dovit_deploy.errors import SourceError, UsageError
from dovit_deploy.files import reported_writes
from dovit_deploy.sources.images import ImageSource, read_image
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import RGB, FailedFrame, Source

KEPT_UPLOADS = 8
"""Images that were dropped on the page and can be asked for again."""
KEPT_BYTES = 500_000_000
"""That they take together, decoded; the last one is kept in any case."""


class Frames(Protocol):
    """Frames that can be looked at in any order."""

    @property
    def count(self) -> int:
        """How many there are; at least 1."""

    def name(self, number: int) -> str:
        """What frame `number` is called."""

    def read(self, number: int) -> RGB:
        """Frame `number`, (H, W, 3) uint8; raises SourceError."""


@dataclass(frozen=True)
class ImageFrames:
    """The images of a source, read when they are asked for."""

    source: ImageSource
    max_pixels: int

    @property
    def count(self) -> int:
        """Images."""
        return len(self.source.paths)

    def name(self, number: int) -> str:
        """The file's name."""
        return str(self.source.paths[number])

    def read(self, number: int) -> RGB:
        """The image; raises SourceError where it cannot be decoded."""
        return read_image(self.source.paths[number], max_pixels=self.max_pixels)


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video, each sought by its time; of a variable rate that which is shown then."""

    text: str
    rate: float
    count: int
    max_pixels: int

    def name(self, number: int) -> str:
        """Its time."""
        return f"{number / self.rate:.2f} s"

    def read(self, number: int) -> RGB:
        """The frame; raises SourceError where there is none."""
        # A little before, so that rounding never skips the frame itself.
        start = max(0.0, round((number - 0.25) / self.rate, 6))
        with open_source(self.text, max_pixels=self.max_pixels, start=start, max_frames=1) as video:
            for frame in video:
                if isinstance(frame, FailedFrame):
                    raise SourceError(frame.message)
                return frame.rgb
        raise SourceError(f"{self.text}: there is no frame at {number / self.rate:.2f} s")


def frames_from_source(text: str, source: Source, *, max_pixels: int) -> Frames:
    """The frames of a source that can be gone through in any order.

    Args:
        text: by which `source` was opened, and can be again.
        source: not iterated yet.
        max_pixels: of a frame.

    Raises:
        UsageError: it is a camera or a stream, which cannot be gone back in.
    """
    if isinstance(source, ImageSource):
        return ImageFrames(source, max_pixels)
    if source.kind == "live" or source.video is None or source.count is None:
        raise UsageError(f"{source.name}: files alone can be gone through in any order; record it first")
    return VideoFrames(text, float(source.video.rate), max(1, source.count), max_pixels)


class Uploads:
    """Images that were dropped on the page, the last few of them; several threads may use it."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._images: OrderedDict[str, RGB] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> str:
        """Decode an image file; the key by which it is asked for.

        Raises:
            SourceError: it cannot be decoded.
            OutputFailed: there is no room for a temporary file.
        """
        key = hashlib.sha256(content).hexdigest()[:16]
        rgb = self._decoded(content)
        with self._lock:
            self._images[key] = rgb
            self._images.move_to_end(key)
            while len(self._images) > 1 and (len(self._images) > KEPT_UPLOADS or self._bytes() > KEPT_BYTES):
                self._images.popitem(last=False)
        return key

    def _bytes(self) -> int:
        return sum(image.nbytes for image in self._images.values())

    def _decoded(self, content: bytes) -> RGB:
        # Through a file, so that every check of an image file is made.
        with reported_writes(Path("the image")), tempfile.TemporaryDirectory(prefix="dovit-view-") as folder:
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                return read_image(path, max_pixels=self._max_pixels)
            except SourceError as error:
                raise SourceError(str(error).replace(str(path), "the image")) from error

    def read(self, key: str) -> RGB:
        """The image with that key; raises SourceError where it is gone."""
        with self._lock:
            if key not in self._images:
                raise SourceError("this image is no longer here; drop it again")
            return self._images[key]
