"""A video file or network stream as a source, through PyAV: exact times and seeking, upright frames."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from dovit_deploy.credentials import masked
from dovit_deploy.errors import SourceError
from dovit_deploy.sources.containers import (
    opened_container,
    orientation,
    reason,
    refuse_heif,
    size_as_seen,
)
from dovit_deploy.sources.images import UPRIGHT, check_pixels, upright, upright_size
from dovit_deploy.sources.source import (
    ASSUMED_RATE,
    CLOCK_TICK,
    RGB,
    Closing,
    Frame,
    FrameClock,
    FrameSelection,
    Selector,
    SourceKind,
    VideoInfo,
)
from dovit_deploy.sources.transfers import hdr_remark

# Enough for 4K in real time; the rest of the machine belongs to the model.
_DECODER_THREADS = 2
_UNTIMED_STREAMS = ("mpjpeg", "mjpeg")
# Matroska has a duration of the whole file; that of a track is a tag, which FFmpeg gives as metadata.
_MATROSKA_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


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
        selection: FrameSelection,
        max_pixels: int,
    ) -> None:
        """`address` is what the user gave; `path` the same as a local file, None for a stream."""
        self.name = masked(address)
        self.warnings: list[str] = []
        self.ended_early: str | None = None
        self._av = av
        self._address = address
        self._path = path
        self._selection = selection
        self._max_pixels = max_pixels
        self._decoder = self.opened_decoder()
        try:
            self._first = self._first_frame()
        except BaseException:
            self.close()
            raise
        self._orientation = orientation(self._first)
        remark = hdr_remark(self.name, int(self._first.color_trc))
        self.warnings += [] if remark is None else [remark]
        self.video = VideoInfo(
            size=upright_size(self._size[0], self._size[1], self._orientation),
            rate=self._decoder.rate,
            time_base=CLOCK_TICK if self._decoder.timed_by_clock else self.clock().time_base,
            has_audio=bool(self._decoder.container.streams.audio),
            path=path,
        )
        self.kind: SourceKind = "live" if path is None and self._decoder.promised_s is None else "video"
        self.count = selection.expected(self._decoder.total, self._decoder.rate)

    def __iter__(self) -> Iterator[Frame]:
        selector = Selector(self._selection)
        began = time.perf_counter()
        for index, time_s, frame in selector.select(self._timed_frames()):
            rgb = self.rgb_of(frame)
            decode_ms = (time.perf_counter() - began) * 1e3
            yield Frame(rgb=rgb, index=index, source=self.name, time_s=time_s, decode_ms=decode_ms)
            # Only from here on: what the caller does with a frame is not decoding.
            began = time.perf_counter()
        if selector.exhausted:
            self.ended_early = self._decoder.shortfall()
        if self._decoder.damaged:
            self.warnings.append(f"{self.name}: {self._decoder.damaged} damaged packets were left out")
        if not selector.taken:
            raise SourceError(f"{self.name}: no frame lies in the span that --start and --end select")

    def close(self) -> None:
        """Close the file or connection; may be called twice."""
        self._decoder.close()
        # The generator refers back to the reader: without this, megabytes wait for the garbage collector.
        self._frames: Iterator[Any] = iter(())

    def opened_decoder(self) -> VideoDecoder:
        """Another decoder of the same file or stream, at its beginning; the caller closes it."""
        return VideoDecoder(self._av, self._address, name=self.name, path=self._path, max_pixels=self._max_pixels)

    def _first_frame(self) -> Any:  # noqa: ANN401
        context, max_pixels = self._decoder.stream.codec_context, self._max_pixels
        check_pixels(self.name, width=context.width, height=context.height, max_pixels=max_pixels)
        self._frames = self._decoder.frames()
        first = next(self._frames, None)
        if first is None:
            why = self._decoder.too_large or "not one frame of this video can be decoded"
            raise SourceError(f"{self.name}: {why}")
        # Some formats state their size only with the first frame.
        self._size = size_as_seen(first.height, first.width, self._decoder.pixel_aspect)
        check_pixels(self.name, width=self._size[1], height=self._size[0], max_pixels=max_pixels)
        return first

    def clock(self) -> FrameClock:
        """What turns the time stamps of this video into seconds, from its beginning."""
        decoder = self._decoder
        return FrameClock(
            tick=Fraction(decoder.stream.time_base),
            first=decoder.stream.start_time,
            rate=decoder.rate,
            constant_rate=decoder.has_constant_rate,
        )

    def _timed_frames(self) -> Iterator[tuple[int, Fraction, Any]]:
        """(index, time in seconds, frame) from the first one, or from one at or before `--start`."""
        start = self._selection.start
        index = 0
        frames: Iterator[Any] = itertools.chain([self._first], self._frames)
        if start and self._path is not None and self._decoder.has_time_stamps:
            sought = self._sought(start, self._path)
            if sought is None:
                self.close()
                self._decoder = self.opened_decoder()
                frames = self._decoder.frames()
            else:
                index, frames = sought
        if self._decoder.timed_by_clock:
            yield from _timed_on_arrival(frames)
            return
        clock = self.clock()
        stamped = self._decoder.has_time_stamps
        for number, frame in enumerate(frames, start=index):
            yield number, clock.time(frame.pts if stamped else None, index=number), frame

    def _sought(self, start: Fraction, path: Path) -> tuple[int, Iterator[Any]] | None:
        """Index of the first frame from `start` on, and the frames from there; None: play from the beginning.

        The frame after the seek must not be after `start`; otherwise frames would be missing.
        """
        decoder, clock = self._decoder, self.clock()
        # A tick early, so that a key frame exactly at `start` is not the first frame seen, which proves nothing.
        stamp = (decoder.stream.start_time or 0) + math.floor(start / decoder.stream.time_base) - 1
        try:
            decoder.seek(stamp)
        except self._av.FFmpegError:
            return None
        frames = decoder.frames()
        for position, frame in enumerate(frames):
            if frame.pts is None:
                return None
            if clock.time(frame.pts, index=0) >= start:
                before = decoder.packets_before(path, frame.pts) if position else None
                return None if before is None else (before, itertools.chain([frame], frames))
        return None

    def rgb_of(self, frame: Any) -> RGB:  # noqa: ANN401
        """(H, W, 3) upright, with square pixels; a stream that changes its size is brought back to its first."""
        height, width = self._size
        rgb: RGB = frame.to_ndarray(format="rgb24", height=height, width=width)
        return rgb if self._orientation == UPRIGHT else upright(rgb, self._orientation)


def _timed_on_arrival(frames: Iterator[Any]) -> Iterator[tuple[int, Fraction, Any]]:
    """(index, seconds since the first frame by the clock, frame); times grow by a tick at least."""
    began, last = time.perf_counter(), -CLOCK_TICK
    for index, frame in enumerate(frames):
        last = max(round(Fraction(time.perf_counter() - began), 6), last + CLOCK_TICK) if index else Fraction(0)
        yield index, last, frame


class VideoDecoder(Closing):
    """Compressed packets of one file's or stream's best video track to decoded frames, through damage.

    `frames()` decodes from the current position; afterwards `shortfall()` says whether all promised frames came.

    Raises:
        SourceError: it does not open in time, or holds no video.
    """

    def __init__(self, av: Any, address: str, *, name: str, path: Path | None, max_pixels: int) -> None:  # noqa: ANN401
        self.name = name
        self._av = av
        self._is_stream = path is None
        self.container = opened_container(av, address, name=name, path=path)
        try:
            refuse_heif(self.container, name)
        except SourceError:
            self.container.close()
            raise
        self.stream = self.container.streams.best("video")
        if self.stream is None:
            self.container.close()
            raise SourceError(f"{name}: it holds no video: sound or text only, or a header that is cut off")
        if self.stream.codec_context is None:
            self.container.close()
            raise SourceError(f"{name}: its video is in a codec that FFmpeg does not know")
        # FFmpeg itself refuses larger frames, before it takes memory for them.
        self.stream.codec_context.options = {"max_pixels": str(max_pixels)}
        self._max_pixels = max_pixels
        self.too_large: str | None = None
        """Why a frame was refused for its size."""
        self.stream.codec_context.thread_type = "AUTO"
        self.stream.codec_context.thread_count = _DECODER_THREADS
        self.damaged = 0
        """Packets that could not be decoded."""
        self._decoded = 0
        self._fault: str | None = None
        self._end: int | None = None

    @property
    def rate(self) -> Fraction:
        """Frames per second: the exact mean; 25 where nothing states it."""
        stream = self.stream
        return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or ASSUMED_RATE)

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a stored pixel by its height; None where nothing states it."""
        aspect = self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio
        return Fraction(aspect) if aspect else None

    @property
    def fault(self) -> str | None:
        """What ended the reading of packets before the end of the file, or cut the last one off."""
        return self._fault

    @property
    def has_constant_rate(self) -> bool:
        """Whether the mean rate is also the smallest step between frames."""
        return bool(self.stream.average_rate and self.stream.average_rate == self.stream.base_rate)

    @property
    def has_time_stamps(self) -> bool:
        """False for AVI, which stores none: FFmpeg makes them up in decoding order."""
        return str(self.container.format.name) != "avi"

    @property
    def timed_by_clock(self) -> bool:
        """Whether a camera's JPEGs come one after another over HTTP: FFmpeg would time them at 25 a second."""
        return self._is_stream and str(self.container.format.name) in _UNTIMED_STREAMS

    @property
    def promised_s(self) -> Fraction | None:
        """Seconds of video that the file's header promises."""
        stream, container = self.stream, self.container
        if stream.duration:
            return Fraction(stream.duration * stream.time_base)
        match = _MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
        if match:
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
        if not container.duration or container.duration < 0:
            return None
        # The longest track counts here; sound may well outlast the video a little.
        slack = 2 if container.streams.audio else 0
        return max(Fraction(container.duration, self._av.time_base) - slack, Fraction(0))

    @property
    def total(self) -> int | None:
        """How many frames the header promises, if it does."""
        if self.stream.frames:
            return int(self.stream.frames)
        return None if self.promised_s is None else round(self.promised_s * self.rate)

    def frames(self) -> Iterator[Any]:
        """Decoded PyAV frames in order of presentation; damaged ones are counted and left out.

        An error in reading ends the iteration; `shortfall()` then gives the reason.
        """
        for packet in self.packets():
            try:
                frames = self.stream.codec_context.decode(packet)
            except self._av.FFmpegError:
                if self._refused_size():
                    return
                self.damaged += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damaged += 1
                    continue
                self._decoded += 1
                if frame.pts is not None:
                    self._end = frame.pts + (frame.duration or 0)
                yield frame

    def _refused_size(self) -> bool:
        """Whether the packet that failed just now holds a frame of more pixels than allowed; that ends the video."""
        # FFmpeg forgets the size when it refuses one.
        if self.stream.codec_context.width:
            return False
        self.too_large = (
            f"a frame has more than the {self._max_pixels} pixels allowed; "
            "make it smaller, or add a larger --max-pixels where the command has that option"
        )
        self._fault = f"after {self._decoded} frames {self.too_large}"
        return True

    def seek(self, stamp: int) -> None:
        """Go to the last key frame at or before `stamp` (in ticks of the stream).

        Raises:
            av.FFmpegError: this container cannot.
        """
        self.container.seek(stamp, stream=self.stream, backward=True)

    def sought(self, stamp: int) -> bool:
        """`seek`, and whether the container can."""
        try:
            self.seek(stamp)
        except self._av.FFmpegError:
            return False
        return True

    def packets_before(self, path: Path, stamp: int) -> int | None:
        """How many frames of the file are shown before `stamp`; None if its packets do not show it.

        Reads the packets from the start without decoding them, hundreds of times faster than playing.
        """
        before = 0
        with opened_container(self._av, str(path), name=self.name, path=path) as container:
            for packet in container.demux(container.streams[self.stream.index]):
                if packet.size == 0:
                    break
                if packet.pts is None or packet.dts is None:
                    return None
                # No later packet can be shown earlier than this one is decoded.
                if packet.dts >= stamp:
                    break
                before += packet.pts < stamp and not packet.is_discard
        return before

    def shortfall(self) -> str | None:
        """After the last frame: why fewer came than promised; None if all came."""
        if self._fault is not None:
            return self._fault
        slack = 2 / self.rate
        if not self.has_time_stamps:
            missing = (self.total or 0) - self._decoded - self.damaged > 2
            return f"it ends after {self._decoded} of {self.total} frames" if missing else None
        promised = self.promised_s
        if promised is None or self._end is None:
            return None
        seconds = (self._end - (self.stream.start_time or 0)) * self.stream.time_base
        if seconds + slack >= promised:
            return None
        return f"it ends after {float(seconds):.2f} of {float(promised):.2f} seconds"

    def close(self) -> None:
        """Close the file or connection; may be called twice."""
        self.container.close()

    def packets(self) -> Iterator[Any]:
        """Packets of the stream, then None, which makes the decoder give out what it still holds."""
        cut = False
        try:
            for packet in self.container.demux(self.stream):
                # PyAV ends with an empty packet; the None below replaces it, and comes after an error too.
                if packet.size == 0:
                    break
                cut = packet.is_corrupt
                yield packet
        except self._av.FFmpegError as error:
            self._fault = f"reading stopped: {reason(error)}"
        if cut and self._fault is None:
            self._fault = "its last packet is cut off"
        yield None
