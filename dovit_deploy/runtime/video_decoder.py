"""Compressed packets to decoded pictures with PyAV, through damage, and whether all that was promised came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from dovit_deploy.errors import SourceError

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 15.0

# Enough for 4K in real time; the rest of the machine belongs to the model.
_DECODER_THREADS = 2
_ASSUMED_RATE = Fraction(25)
_MATROSKA_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


class VideoDecoder:
    """The best picture track of one file or stream; `pictures()` decodes it from where it stands.

    Raises:
        SourceError: it does not open in time, or holds no pictures.
    """

    def __init__(self, av: Any, address: str, *, name: str, is_file: bool) -> None:  # noqa: ANN401
        self.name = name
        self._av = av
        self._address = address
        # Without TCP, packets lost on the way become grey pictures.
        options = {} if is_file else {"rtsp_transport": "tcp"}
        timeout = None if is_file else (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        try:
            self.container = av.open(address, mode="r", options=options, timeout=timeout)
        except av.FFmpegError as error:
            what = "not a video that can be read" if is_file else "this stream does not open"
            raise SourceError(f"{name}: {what} ({_reason(error)})") from error
        self.stream = self.container.streams.best("video")
        if self.stream is None:
            self.container.close()
            raise SourceError(f"{name}: it holds no pictures: sound or text only, or a header that is cut off")
        if self.stream.codec_context is None:
            self.container.close()
            raise SourceError(f"{name}: its pictures are in a codec that FFmpeg does not know")
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
        return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or _ASSUMED_RATE)

    @property
    def has_constant_rate(self) -> bool:
        """Whether the mean rate is also the smallest step between frames."""
        return bool(self.stream.average_rate and self.stream.average_rate == self.stream.base_rate)

    @property
    def has_time_stamps(self) -> bool:
        """False for AVI, which stores none: FFmpeg makes them up in decoding order."""
        return str(self.container.format.name) != "avi"

    @property
    def promised_s(self) -> Fraction | None:
        """Seconds of pictures that the file's header promises."""
        stream, container = self.stream, self.container
        if stream.duration:
            return Fraction(stream.duration * stream.time_base)
        match = _MATROSKA_DURATION.match(stream.metadata.get("DURATION", ""))
        if match:
            hours, minutes, seconds = match.groups()
            return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
        if not container.duration or container.duration < 0:
            return None
        # The longest track counts here; sound may well outlast the pictures a little.
        slack = 2 if container.streams.audio else 0
        return max(Fraction(container.duration, self._av.time_base) - slack, Fraction(0))

    @property
    def total(self) -> int | None:
        """How many frames the header promises, if it does."""
        if self.stream.frames:
            return int(self.stream.frames)
        return None if self.promised_s is None else round(self.promised_s * self.rate)

    def pictures(self) -> Iterator[Any]:
        """Decoded PyAV frames in order of presentation; damaged ones are counted and left out.

        An error in reading ends the iteration; `shortfall()` then tells it.
        """
        for packet in self._packets():
            try:
                pictures = self.stream.codec_context.decode(packet)
            except self._av.FFmpegError:
                self.damaged += 1
                continue
            for picture in pictures:
                if picture.is_corrupt:
                    self.damaged += 1
                    continue
                self._decoded += 1
                if picture.pts is not None:
                    self._end = picture.pts + (picture.duration or 0)
                yield picture

    def seek(self, stamp: int) -> None:
        """Go to the last key frame at or before `stamp` (in ticks of the stream).

        Raises:
            av.FFmpegError: this container cannot.
        """
        self.container.seek(stamp, stream=self.stream, backward=True)

    def packets_before(self, path: Path, stamp: int) -> int | None:
        """How many frames of the file are shown before `stamp`; None if its packets do not tell.

        Reads the packets from the start without decoding them, hundreds of times faster than playing.
        """
        before = 0
        with self._av.open(str(path)) as container:
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
        """After the last picture: why fewer came than promised; None if all came."""
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

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream, then None, which makes the decoder give out what it still holds."""
        cut = False
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0:
                    break
                cut = packet.is_corrupt
                yield packet
        except self._av.FFmpegError as error:
            self._fault = f"reading stopped: {_reason(error)}"
        if cut and self._fault is None:
            self._fault = "its last packet is cut off"
        yield None


def _reason(error: Exception) -> str:
    """FFmpeg's words without its number and the address, which the message names already."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
