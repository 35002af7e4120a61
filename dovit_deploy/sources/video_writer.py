"""Write frames as an H.264 video that plays everywhere, with exact times and the source's sound.

Where PyAV is missing, OpenCV writes MPEG-4 Part 2 instead, and a warning names what is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from dovit_deploy import packages
from dovit_deploy.errors import EncoderMissing, OutputFailed, SourceError
from dovit_deploy.sources.containers import opened_container
from dovit_deploy.sources.opencv import opened_capture
from dovit_deploy.sources.source import RGB, Closing

# Against preset "veryfast": as sharp at this crf, twice the bytes, a sixth of the time (4 ms for 720p).
ENCODER = "libx264"
ENCODER_OPTIONS = {"preset": "ultrafast", "crf": "20"}
_ENCODER_THREADS = 2

# Numbers of ITU-T H.273: OpenCV converts by BT.601 into the limited range, of sRGB-like colours.
_MATRIX_BT601, _PRIMARIES_BT709, _TRANSFER_BT709, _RANGE_LIMITED = 6, 1, 1, 1

# MP4 keeps ticks per second in 32 bits; beyond some millions players stumble, and nobody can see it.
_FINEST_TICKS_PER_SECOND = 10_000_000
_COARSE_TICKS_PER_SECOND = 90_000

_MPEG4 = "mp4v"

# What players expect in an MP4 file; FFmpeg writes a few more that hardly anything plays.
_MP4_CODECS = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "flac", "opus"})


class VideoWriter(Protocol):
    """Takes frames in order of time; a context manager; closing makes the file playable."""

    warnings: list[str]
    """Lines for the user."""

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Add the frame (height, width, 3) shown from `time_s` on, in the source's time."""

    def close(self) -> None:
        """Finish the file, also after an interrupt; without a single frame no file is left."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_video_writer(
    path: Path,
    *,
    size: tuple[int, int],
    rate: Fraction,
    time_base: Fraction | None = None,
    audio_from: Path | None = None,
) -> VideoWriter:
    """A writer of the MP4 file `path`.

    Args:
        path: replaced if it exists.
        size: (height, width) of every frame; odd ones are padded by repeating the last row or column.
        rate: frames per second.
        time_base: seconds of which all times are multiples; default: 1 / rate, a constant rate.
        audio_from: the file whose sound is copied, cut to the span from the first to the last frame.

    Raises:
        EncoderMissing: neither PyAV with H.264 nor OpenCV can encode, or not frames of this size.
    """
    av = packages.pyav()
    if av is not None and ENCODER in av.codecs_available:
        return H264Writer(av, path, size=size, rate=rate, time_base=time_base, audio_from=audio_from)
    return OpencvVideoWriter(path, size=size, rate=rate, wants_audio=audio_from is not None)


class H264Writer(Closing):
    """H.264 through PyAV, the index in front so that players on the web can start at once."""

    def __init__(
        self,
        av: Any,  # noqa: ANN401
        path: Path,
        *,
        size: tuple[int, int],
        rate: Fraction,
        time_base: Fraction | None,
        audio_from: Path | None,
    ) -> None:
        """As `open_video_writer`, with PyAV's module."""
        self.warnings: list[str] = []
        self._av, self._path = av, path
        self._cv2 = packages.opencv()
        self._padding = EvenPadding(size)
        self._tick = _tick(rate, time_base)
        self._duration = max(round(1 / rate / self._tick), 1)
        self._first: Fraction | None = None
        self._last = -1
        self._closed = self._failed = False
        with self._mapped_errors():
            options = {"movflags": "+faststart"}
            self._output = av.open(str(path.absolute()), "w", format="mp4", options=options)
        self._stream = self._video_stream(rate)
        self._audio = None if audio_from is None else self._audio_copy(audio_from)

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Encode one frame; a time that does not grow is moved one tick after the last.

        Raises:
            ValueError: `rgb` is not of the announced size.
            OutputFailed: the file cannot be written (disk full).
        """
        yuv = self._cv2.cvtColor(self._padding.padded(rgb), self._cv2.COLOR_RGB2YUV_I420)
        if self._first is None:
            self._start(time_s)
        frame = self._av.VideoFrame.from_ndarray(yuv, format="yuv420p")
        frame.pts = max(round((time_s - (self._first or 0)) / self._tick), self._last + 1)
        frame.time_base, frame.duration = self._tick, self._duration
        self._last = frame.pts
        with self._mapped_errors():
            self._output.mux(self._stream.encode(frame))
            if self._audio is not None:
                self._audio.copy_until(self._last * self._tick)

    def close(self) -> None:
        """Write what the encoder still holds, the rest of the sound and the index; may be called twice.

        Raises:
            OutputFailed: the file cannot be written (disk full).
        """
        if self._closed:
            return
        self._closed = True
        try:
            with self._mapped_errors(), closing(self._output):
                if self._first is not None:
                    self._output.mux(self._stream.encode(None))
                    if self._audio is not None:
                        self._audio.copy_until((self._last + self._duration) * self._tick)
        finally:
            if self._failed:
                # Without its index nothing can play it; and the room it takes may be what the report needs.
                self._path.unlink(missing_ok=True)
            if self._audio is not None:
                self._audio.close()
                self.warnings += self._audio.warnings

    def _start(self, time_s: Fraction) -> None:
        """Write the header; `time_s` becomes time 0 of the file."""
        # Called explicitly: PyAV crashes when it is given packets after a header that failed.
        with self._mapped_errors():
            self._output.start_encoding()
        self._first = time_s
        if self._audio is not None:
            self._audio.begin(time_s)

    def _video_stream(self, rate: Fraction) -> Any:  # noqa: ANN401
        """The H.264 track, its encoder opened at once so that a refusal comes before any work."""
        height, width = self._padding.height, self._padding.width
        stream = self._output.add_stream(ENCODER, rate=rate, options=ENCODER_OPTIONS)
        stream.time_base = self._tick
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = self._tick
        context.thread_count = _ENCODER_THREADS
        context.colorspace, context.color_range = _MATRIX_BT601, _RANGE_LIMITED
        context.color_primaries, context.color_trc = _PRIMARIES_BT709, _TRANSFER_BT709
        try:
            context.open()
        except self._av.FFmpegError as error:
            self._output.close()
            raise EncoderMissing(
                f"{self._path}: the H.264 encoder does not take {width}x{height}; "
                "save masks instead (--save masks), or give smaller frames"
            ) from error
        return stream

    def _audio_copy(self, source: Path) -> AudioCopy | None:
        try:
            return AudioCopy(self._av, source, self._output)
        except (SourceError, self._av.FFmpegError) as error:
            self.warnings.append(f"the sound is left out: {source} cannot be read a second time ({error})")
            return None

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            raise OutputFailed(f"cannot write {self._path.name}: {reason}") from error


def _tick(rate: Fraction, time_base: Fraction | None) -> Fraction:
    """The file's unit of time in seconds: fine enough that every time is a whole number of it."""
    per_second = rate.numerator if time_base is None else time_base.denominator
    return Fraction(1, per_second if per_second <= _FINEST_TICKS_PER_SECOND else _COARSE_TICKS_PER_SECOND)


class AudioCopy:
    """Copies the best audio track of `source`, packet by packet and undecoded, in step with the frames written.

    It reads ahead by one packet only, so memory does not grow with the length of the video.
    """

    def __init__(self, av: Any, source: Path, output: Any) -> None:  # noqa: ANN401
        """Adds the track to `output` (a PyAV container not yet written to), if there is one to copy.

        Raises:
            SourceError: `source` cannot be opened.
            av.FFmpegError: its sound cannot be copied.
        """
        self.warnings: list[str] = []
        self._av = av
        self._output = output
        self._track: Any = None
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        self._input = opened_container(av, str(source), name=str(source), path=source)
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
        """Start at `time_s` of the source's frames, which becomes time 0 of the output."""
        if self._track is None:
            return
        video = self._input.streams.best("video")
        zero = Fraction(0)
        if video is not None and video.start_time is not None:
            zero = video.start_time * video.time_base
        self._origin = math.floor((zero + time_s) / self._stream.time_base)
        if time_s > 0:
            # A container that cannot seek is read from the front; what comes before the span is left out.
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


class OpencvVideoWriter(Closing):
    """MPEG-4 Part 2 through OpenCV, where PyAV is not installed: no sound, and the rate constant and a float.

    Each loss is named in a warning.

    Raises:
        EncoderMissing: OpenCV is missing, or this build cannot encode, or not frames of this size.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], rate: Fraction, wants_audio: bool) -> None:
        loss = " without sound," if wants_audio else ""
        self.warnings = [
            f"{path.name}: written with OpenCV as MPEG-4 ({_MPEG4}),{loss} at a constant rate, because PyAV is not "
            "installed; for H.264, sound and exact times: pip install 'dovit-deploy[video]'"
        ]
        self._cv2 = packages.opencv()
        self._padding = EvenPadding(size)
        self._path = path
        self._written = 0
        width_height = (self._padding.width, self._padding.height)
        fourcc = self._cv2.VideoWriter.fourcc(*_MPEG4)
        self._writer = self._cv2.VideoWriter(str(path.absolute()), fourcc, float(rate), width_height)
        if not self._writer.isOpened():
            self._writer.release()
            path.unlink(missing_ok=True)
            raise EncoderMissing(
                f"{path}: OpenCV cannot encode {width_height[0]}x{width_height[1]} as {_MPEG4}; "
                "install PyAV: pip install 'dovit-deploy[video]', or save masks instead (--save masks)"
            )

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Encode one frame; its time cannot be kept, only its order.

        Raises:
            ValueError: `rgb` is not of the announced size.
        """
        del time_s
        self._writer.write(self._cv2.cvtColor(self._padding.padded(rgb), self._cv2.COLOR_RGB2BGR))
        self._written += 1

    def close(self) -> None:
        """Finish the file; without a single frame no file is left; may be called twice.

        Raises:
            OutputFailed: the file does not hold every frame: OpenCV itself never says so (disk full).
        """
        if not self._writer.isOpened():
            return
        self._writer.release()
        found = self._frames_found() if self._written else 0
        if not self._written or found < self._written:
            self._path.unlink(missing_ok=True)
        if found < self._written:
            raise OutputFailed(
                f"cannot write {self._path.name}: OpenCV wrote {found} of {self._written} frames; is the disk full?"
            )

    def _frames_found(self) -> int:
        """How many frames the finished file announces; 0 where it cannot be opened."""
        capture = opened_capture(self._cv2, str(self._path.absolute()))
        try:
            return int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        finally:
            capture.release()


class EvenPadding:
    """Pads frames of one size to even height and width by repeating the last row and column.

    4:2:0 video stores colour for 2 x 2 pixels at once.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` is (height, width) in pixels."""
        self._height, self._width = size
        self.height, self.width = self._height + self._height % 2, self._width + self._width % 2
        self._buffer: RGB = np.empty((self.height, self.width, 3), dtype=np.uint8)

    def padded(self, rgb: RGB) -> RGB:
        """(height, width, 3), contiguous; a buffer that the next call overwrites, or `rgb` itself.

        Raises:
            ValueError: `rgb` is not of the size that was announced.
        """
        if rgb.shape != (self._height, self._width, 3):
            raise ValueError(f"frame of shape {rgb.shape}; this video is {self._height}x{self._width}")
        if (self.height, self.width) == (self._height, self._width):
            return np.ascontiguousarray(rgb)
        self._buffer[: self._height, : self._width] = rgb
        self._buffer[: self._height, self._width :] = rgb[:, -1:]
        self._buffer[self._height :] = self._buffer[self._height - 1]
        return self._buffer
