"""Write pictures as an H.264 video that plays everywhere, with exact times and the source's sound.

Where PyAV is missing, OpenCV writes MPEG-4 Part 2 instead, and says what is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from dovit_deploy import packages
from dovit_deploy.errors import EncoderMissing, EnvironmentProblem
from dovit_deploy.runtime.audio_copy import AudioCopy
from dovit_deploy.runtime.closing import Closing
from dovit_deploy.runtime.results import RGB
from dovit_deploy.runtime.video_padding import EvenPadding
from dovit_deploy.runtime.video_writer_opencv import OpencvVideoWriter

# Against preset "veryfast": as sharp at this crf, twice the bytes, a sixth of the time (4 ms for 720p).
ENCODER = "libx264"
ENCODER_OPTIONS = {"preset": "ultrafast", "crf": "20"}
_ENCODER_THREADS = 2

# Numbers of ITU-T H.273: OpenCV converts by BT.601 into the limited range, of sRGB-like colours.
_MATRIX_BT601, _PRIMARIES_BT709, _TRANSFER_BT709, _RANGE_LIMITED = 6, 1, 1, 1

# MP4 keeps ticks per second in 32 bits; beyond some millions players stumble, and nobody can see it.
_FINEST_TICKS_PER_SECOND = 10_000_000
_COARSE_TICKS_PER_SECOND = 90_000


class VideoWriter(Protocol):
    """Takes pictures in order of time; a context manager; closing makes the file playable."""

    warnings: list[str]
    """Lines for the user."""

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Add the picture (height, width, 3) shown from `time_s` on, in the source's time."""

    def close(self) -> None:
        """Finish the file, also after an interrupt; without a single picture no file is left."""

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
        size: (height, width) of every picture; odd ones are padded by repeating the last row or column.
        rate: frames per second.
        time_base: seconds of which all times are multiples; default: 1 / rate, a constant rate.
        audio_from: the file whose sound is copied, cut to the span from the first to the last picture.

    Raises:
        EncoderMissing: neither PyAV with H.264 nor OpenCV can encode, or not pictures of this size.
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
        self._closed = False
        with self._mapped_errors():
            options = {"movflags": "+faststart"}
            self._output = av.open(str(path.absolute()), "w", format="mp4", options=options)
        self._stream = self._picture_stream(rate)
        self._audio = None if audio_from is None else self._audio_copy(audio_from)

    def write(self, rgb: RGB, time_s: Fraction) -> None:
        """Encode one picture; a time that does not grow is moved one tick after the last.

        Raises:
            ValueError: `rgb` is not of the announced size.
            EnvironmentProblem: the file cannot be written (disk full).
        """
        yuv = self._cv2.cvtColor(self._padding.padded(rgb), self._cv2.COLOR_RGB2YUV_I420)
        if self._first is None:
            self._start(time_s)
        picture = self._av.VideoFrame.from_ndarray(yuv, format="yuv420p")
        picture.pts = max(round((time_s - (self._first or 0)) / self._tick), self._last + 1)
        picture.time_base, picture.duration = self._tick, self._duration
        self._last = picture.pts
        with self._mapped_errors():
            self._output.mux(self._stream.encode(picture))
            if self._audio is not None:
                self._audio.copy_until(self._last * self._tick)

    def close(self) -> None:
        """Write what the encoder still holds, the rest of the sound and the index; may be called twice.

        Raises:
            EnvironmentProblem: the file cannot be written (disk full).
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
            if self._audio is not None:
                self._audio.close()
                self.warnings += self._audio.warnings

    def _start(self, time_s: Fraction) -> None:
        """Write the header; `time_s` becomes time 0 of the file."""
        # Asked for by name: PyAV crashes when it is given packets after a header that failed.
        with self._mapped_errors():
            self._output.start_encoding()
        self._first = time_s
        if self._audio is not None:
            self._audio.begin(time_s)

    def _picture_stream(self, rate: Fraction) -> Any:  # noqa: ANN401
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
                "save masks instead (--save masks), or give smaller pictures"
            ) from error
        return stream

    def _audio_copy(self, source: Path) -> AudioCopy | None:
        try:
            return AudioCopy(self._av, source, self._output)
        except self._av.FFmpegError as error:
            self.warnings.append(f"the sound is left out: {source} cannot be read a second time ({error})")
            return None

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            reason = getattr(error, "strerror", None) or error
            raise EnvironmentProblem(f"{self._path}: cannot be written ({reason})") from error


def _tick(rate: Fraction, time_base: Fraction | None) -> Fraction:
    """The file's unit of time in seconds: fine enough that every time is a whole number of it."""
    per_second = rate.numerator if time_base is None else time_base.denominator
    return Fraction(1, per_second if per_second <= _FINEST_TICKS_PER_SECOND else _COARSE_TICKS_PER_SECOND)
