"""What is in an image, a folder of images, or a video: size, number of frames, rate, sound."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

from dovit_deploy.bundle.spec import Noun
from dovit_deploy.measure.model_contents import Rows
from dovit_deploy.runtime.frame_source import FailedFrame, Source
from dovit_deploy.runtime.images import DEFAULT_MAX_PIXELS
from dovit_deploy.runtime.sources import open_source


class PictureContents(Noun):
    """A source of pictures."""

    kind: Literal["images", "video"]
    path: str
    bytes: int | None
    """None for a folder."""
    height: int | None
    """Upright, in pixels; of the first picture of a folder, None when that cannot be read."""
    width: int | None
    frames: int | None
    """None where the file does not tell."""
    rate: str | None
    """Frames per second, exact, as in "30000/1001"; None for images."""
    seconds: float | None
    audio: bool
    warnings: tuple[str, ...]

    @property
    def rows(self) -> Rows:
        """What a user reads: label and text."""
        size = "unknown" if self.height is None else f"{self.width}x{self.height} pixels (width x height)"
        seconds = "" if self.seconds is None else f", {self.seconds:.2f} s"
        return (
            ("size", size),
            ("frames", f"{'unknown' if self.frames is None else self.frames}{seconds}"),
            *((("rate", f"{self.rate} frames per second"),) if self.rate is not None else ()),
            *((("sound", "yes" if self.audio else "no"),) if self.kind == "video" else ()),
            *(("note", warning) for warning in self.warnings),
        )


def picture_contents(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PictureContents:
    """Describe the image, folder or video at `path`.

    Raises:
        SourceError: it does not open, cannot be decoded, or holds no picture.
        PackageMissing: what reads it is not installed.
    """
    with closing(open_source(str(path), max_pixels=max_pixels)) as source:
        size = _size(source)
        video = source.video
        rate = None if video is None else video.rate
        known = rate is not None and rate > 0 and source.count is not None
        return PictureContents(
            kind="images" if video is None else "video",
            path=str(path),
            bytes=path.stat().st_size if path.is_file() else None,
            height=size[0] if size else None,
            width=size[1] if size else None,
            frames=source.count,
            rate=None if rate is None else str(rate),
            seconds=float(source.count / rate) if known and source.count is not None and rate is not None else None,
            audio=video is not None and video.has_audio,
            warnings=tuple(source.warnings),
        )


def _size(source: Source) -> tuple[int, int] | None:
    """Height and width; images tell theirs only when they are read."""
    if source.video is not None:
        return source.video.size
    first = next(iter(source), None)
    if first is None or isinstance(first, FailedFrame):
        return None
    return first.rgb.shape[0], first.rgb.shape[1]
