"""Carry the sound of a video file into another one, packet by packet, without decoding it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

# What players expect in an MP4 file; FFmpeg writes a few more that hardly anything plays.
_MP4_CODECS = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "flac", "opus"})


class AudioCopy:
    """Copies the best audio track of `source` in step with the pictures that are written.

    It reads ahead by one packet only, so memory does not grow with the length of the video.
    """

    def __init__(self, av: Any, source: Path, output: Any) -> None:  # noqa: ANN401
        """Adds the track to `output` (a PyAV container not yet written to), if there is one to copy.

        Raises:
            av.FFmpegError: `source` cannot be opened.
        """
        self.warnings: list[str] = []
        self._av = av
        self._output = output
        self._track: Any = None
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        self._input = av.open(str(source.absolute()))
        self._stream = self._input.streams.best("audio")
        if self._stream is None:
            return
        context = self._stream.codec_context
        codec = "an unknown codec" if context is None else context.codec.canonical_name
        if codec in _MP4_CODECS:
            self._track = output.add_stream_from_template(self._stream)
        else:
            self.warnings.append(f"the sound is left out: MP4 cannot carry {codec}")

    def begin(self, time_s: Fraction) -> None:
        """Start at `time_s` of the source's pictures, which becomes time 0 of the output."""
        if self._track is None:
            return
        video = self._input.streams.best("video")
        zero = Fraction(0)
        if video is not None and video.start_time is not None:
            zero = video.start_time * video.time_base
        self._origin = math.floor((zero + time_s) / self._stream.time_base)
        if time_s > 0:
            # A container that cannot seek is read from the front; what lies before the span is left out.
            with suppress(self._av.FFmpegError):
                self._input.seek(self._origin, stream=self._stream, backward=True)
        self._packets = self._from_origin()
        self._waiting = next(self._packets, None)

    def copy_until(self, time_s: Fraction) -> None:
        """Write the packets that begin before `time_s` of the output."""
        while self._waiting is not None and self._waiting.pts * self._stream.time_base < time_s:
            packet, self._waiting = self._waiting, None
            packet.stream = self._track
            try:
                self._output.mux(packet)
            except self._av.FFmpegError as error:
                self.warnings.append(f"the sound ends at {float(time_s):.1f} s: it cannot be copied ({error})")
                return
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        """Close the source; may be called twice."""
        self._input.close()

    def _from_origin(self) -> Iterator[Any]:
        """Packets from the origin on, counted from it; a damaged rest of the sound ends them."""
        try:
            for packet in self._input.demux(self._stream):
                if packet.size == 0:
                    return
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts -= self._origin
                packet.dts -= self._origin
                # One packet early is kept: decoders need the one before to play the first in full.
                if packet.pts + 2 * (packet.duration or 0) > 0:
                    yield packet
        except self._av.FFmpegError:
            return
