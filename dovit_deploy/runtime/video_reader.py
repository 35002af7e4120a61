"""A video file or network stream as a source, through PyAV: exact times and seeking, upright frames."""

from __future__ import annotations

import itertools
import math
import struct
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.closing import Closing
from dovit_deploy.runtime.frame_clock import FrameClock
from dovit_deploy.runtime.frame_source import Choice, Kind, Selection, Selector, VideoInfo
from dovit_deploy.runtime.images import check_pixels
from dovit_deploy.runtime.orientation import UPRIGHT, orientation_from_matrix, upright, upright_size
from dovit_deploy.runtime.results import RGB, Frame
from dovit_deploy.runtime.video_decoder import VideoDecoder


class VideoReader(Closing):
    """A file ("video") or a stream ("live"); the first frame is decoded when it is opened.

    Raises:
        SourceError: it does not open, is no video, is too large, or has not a single frame;
            while iterating: no frame lies in the selected span.
    """

    def __init__(
        self,
        av: Any,  # noqa: ANN401
        address: str,
        *,
        path: Path | None,
        selection: Selection,
        max_pixels: int,
    ) -> None:
        """`address` is what the user gave; `path` the same as a local file, None for a stream."""
        self.name = address
        self.warnings: list[str] = []
        self.ended_early: str | None = None
        self._av = av
        self._path = path
        self._selection = selection
        self._decoder = self._opened()
        try:
            self._first = self._first_picture(max_pixels)
        except BaseException:
            self.close()
            raise
        self._orientation = _orientation(self._first)
        self._stored_size = (self._first.height, self._first.width)
        self.video = VideoInfo(
            size=upright_size(*self._stored_size, self._orientation),
            rate=self._decoder.rate,
            time_base=self._clock().time_base,
            has_audio=bool(self._decoder.container.streams.audio),
            path=path,
        )
        self.kind: Kind = "live" if path is None and self._decoder.promised_s is None else "video"
        self.count = selection.expected(self._decoder.total, self._decoder.rate)

    def __iter__(self) -> Iterator[Frame]:
        selector = Selector(self._selection)
        given = 0
        began = time.perf_counter()
        for index, time_s, picture in self._timed_pictures():
            choice = selector.judge(time_s)
            if choice is Choice.STOP:
                break
            if choice is Choice.TAKE:
                rgb = self._rgb(picture)
                decode_ms = (time.perf_counter() - began) * 1e3
                yield Frame(rgb=rgb, index=index, source=self.name, time_s=time_s, decode_ms=decode_ms)
                given += 1
                if selector.done:
                    break
                began = time.perf_counter()
        else:
            self.ended_early = self._decoder.shortfall()
        if self._decoder.damaged:
            self.warnings.append(f"{self.name}: {self._decoder.damaged} damaged packets were left out")
        if not given:
            raise SourceError(f"{self.name}: no frame lies in the span that --start and --end select")

    def close(self) -> None:
        """Close the file or connection; may be called twice."""
        self._decoder.close()
        # The generator refers back to the reader: without this, megabytes wait for the garbage collector.
        self._pictures: Iterator[Any] = iter(())

    def _opened(self) -> VideoDecoder:
        # An absolute path cannot be taken for one of FFmpeg's protocols ("concat:...").
        address = self.name if self._path is None else str(self._path.absolute())
        return VideoDecoder(self._av, address, name=self.name, is_file=self._path is not None)

    def _first_picture(self, max_pixels: int) -> Any:  # noqa: ANN401
        context = self._decoder.stream.codec_context
        check_pixels(self.name, width=context.width, height=context.height, max_pixels=max_pixels)
        self._pictures = self._decoder.pictures()
        first = next(self._pictures, None)
        if first is None:
            raise SourceError(f"{self.name}: not one frame of this video can be decoded")
        # Some formats state their size only with the first frame.
        check_pixels(self.name, width=first.width, height=first.height, max_pixels=max_pixels)
        return first

    def _clock(self) -> FrameClock:
        decoder = self._decoder
        return FrameClock(
            tick=Fraction(decoder.stream.time_base),
            first=decoder.stream.start_time,
            rate=decoder.rate,
            constant_rate=decoder.has_constant_rate,
        )

    def _timed_pictures(self) -> Iterator[tuple[int, Fraction, Any]]:
        """(index, time in seconds, picture) from the first one, or from one at or before `--start`."""
        start = self._selection.start
        index = 0
        pictures: Iterator[Any] = itertools.chain([self._first], self._pictures)
        if start and self._path is not None and self._decoder.has_time_stamps:
            sought = self._sought(start, self._path)
            if sought is None:
                self.close()
                self._decoder = self._opened()
                pictures = self._decoder.pictures()
            else:
                index, pictures = sought
        clock = self._clock()
        stamped = self._decoder.has_time_stamps
        for number, picture in enumerate(pictures, start=index):
            yield number, clock.time(picture.pts if stamped else None, index=number), picture

    def _sought(self, start: Fraction, path: Path) -> tuple[int, Iterator[Any]] | None:
        """Index of the first picture from `start` on, and the pictures from there; None: play from the beginning.

        The picture after the seek must not lie after `start`, else frames would be missing.
        """
        decoder, clock = self._decoder, self._clock()
        stamp = (decoder.stream.start_time or 0) + math.floor(start / decoder.stream.time_base) - 1
        try:
            decoder.seek(stamp)
        except self._av.FFmpegError:
            return None
        pictures = decoder.pictures()
        for position, picture in enumerate(pictures):
            if picture.pts is None:
                return None
            if clock.time(picture.pts, index=0) >= start:
                before = decoder.packets_before(path, picture.pts) if position else None
                return None if before is None else (before, itertools.chain([picture], pictures))
        return None

    def _rgb(self, picture: Any) -> RGB:  # noqa: ANN401
        """(H, W, 3) upright; a stream that changes its size is brought back to that of its first frame."""
        height, width = self._stored_size
        rgb: RGB = picture.to_ndarray(format="rgb24", height=height, width=width)
        return rgb if self._orientation == UPRIGHT else upright(rgb, self._orientation)


def _orientation(picture: Any) -> int:  # noqa: ANN401
    """EXIF number of the display matrix that FFmpeg hands on with each picture."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return orientation_from_matrix(a, b, c, d)
