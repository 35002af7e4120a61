"""What a source of frames is, which of its frames are wanted, and when each of them is shown.

Source           images | video | live   ->   Frame, Frame, FailedFrame, Frame, ...
FrameSelection   --start --end --every --max-frames, as data
Selector         the same as a decision per frame, taken before a pixel of it is converted
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import UsageError

RGB = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, red first, upright."""
CLOCK_TICK = Fraction(1, 1_000_000)
"""Seconds; frames of a camera are timed by the clock as they arrive."""
_T = TypeVar("_T")
_Given = TypeVar("_Given", covariant=True)
SourceKind = Literal["images", "video", "live"]
ASSUMED_RATE = Fraction(25)
"""Frames per second, where driver, file and stream state none."""


class ImageSet(Protocol[_Given]):
    """Several images that can be gone through again and again; each may be decoded when its turn comes."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_Given]: ...


@dataclass(frozen=True)
class Frame:
    """One frame of a source."""

    rgb: RGB
    """(H, W, 3) uint8, upright."""
    index: int
    """Position in the source, from 0, before `--every` and `--start` select."""
    source: str
    """File name, device or address."""
    time_s: Fraction
    """Presentation time in seconds, exact; 0 for images."""
    decode_ms: float = 0.0
    still: bool = False
    """Equal to the frame given before it, bit for bit."""


@dataclass(frozen=True)
class FailedFrame:
    """A frame that could not be read; the ones after it still come."""

    source: str
    """File name."""
    message: str
    """One line for the user."""
    index: int
    """Position in the source, from 0."""


@dataclass(frozen=True)
class VideoInfo:
    """What a writer must know of a video or live source."""

    size: tuple[int, int]
    """(height, width) in pixels, upright."""
    rate: Fraction
    """Frames per second, exact; the mean of a variable rate."""
    time_base: Fraction
    """Seconds; every `Frame.time_s` is a multiple of it (of 1/1000000 for cameras)."""
    has_audio: bool
    path: Path | None
    """The file that audio can be copied from; None for cameras and streams."""


class Source(Protocol):
    """Frames, one after another; a context manager; iterated once, by one thread."""

    @property
    def kind(self) -> SourceKind:
        """ "images", "video" (a finite one) or "live" (camera or stream)."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def count(self) -> int | None:
        """How many frames the iteration is expected to give; None if unknown."""

    @property
    def video(self) -> VideoInfo | None:
        """Size, rate and audio; None for images."""

    @property
    def warnings(self) -> list[str]:
        """Lines for the user; complete only after the iteration."""

    @property
    def ended_early(self) -> str | None:
        """After the iteration: why a video gave fewer frames than it promised; None if it did not."""

    def __iter__(self) -> Iterator[Frame | FailedFrame]: ...
    def close(self) -> None:
        """Release the file, connection or camera; may be called twice."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a source are wanted.

    Raises:
        UsageError: a value that selects nothing or makes no sense.
    """

    every: int = 1
    """Take every n-th, counted from the first one in the span."""
    max_frames: int | None = None
    start: Fraction | None = None
    """Seconds; frames from this time on."""
    end: Fraction | None = None
    """Seconds; frames before this time."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"--every {self.every}: must be 1 or more")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"--max-frames {self.max_frames}: must be 1 or more")
        if self.start is not None and self.start < 0:
            raise UsageError(f"--start {float(self.start):g}: must be 0 or more seconds")
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(f"--end {float(self.end):g}: must be later than --start {float(self.start or 0):g}")

    def thin(self, count: int) -> int:
        """How many of `count` frames in the span are taken."""
        # Rounded up, since the first frame is taken.
        taken = -(-count // self.every)
        return taken if self.max_frames is None else min(taken, self.max_frames)

    def expected(self, total: int | None, rate: Fraction) -> int | None:
        """How many of a video's `total` frames are taken, at a constant rate."""
        if self.end is not None:
            within = math.ceil(self.end * rate)
            total = within if total is None else min(total, within)
        if total is None:
            return self.max_frames
        # The first frame at or after a time t is number ceil(t * rate).
        return self.thin(max(total - math.ceil((self.start or 0) * rate), 0))


class Choice(Enum):
    """What to do with the frame at hand."""

    TAKE = "take"
    SKIP = "skip"
    STOP = "stop"


class Selector:
    """Applies a FrameSelection to frames in order of time."""

    def __init__(self, selection: FrameSelection) -> None:
        self._selection = selection
        self._in_span = 0
        self.seen = 0
        """Frames judged."""
        self.taken = 0
        self.exhausted = False
        """Whether the source ended before the selection did."""

    @property
    def done(self) -> bool:
        """Whether `--max-frames` are taken, so that not even the next frame need be decoded."""
        return self.taken == self._selection.max_frames

    def select(self, timed: Iterable[tuple[int, Fraction, _T]]) -> Iterator[tuple[int, Fraction, _T]]:
        """The wanted ones of `timed`: index, seconds, and a frame that is still to be converted."""
        for index, time_s, frame in timed:
            choice = self.judge(time_s)
            if choice is Choice.STOP:
                return
            if choice is Choice.TAKE:
                yield index, time_s, frame
            if self.done:
                return
        self.exhausted = True

    def judge(self, time_s: Fraction) -> Choice:
        """Decide on the frame at `time_s`, which must not be before the last one judged."""
        wanted = self._selection
        self.seen += 1
        if wanted.start is not None and time_s < wanted.start:
            return Choice.SKIP
        if self.done or (wanted.end is not None and time_s >= wanted.end):
            return Choice.STOP
        self._in_span += 1
        # Counted from the first frame of the span, so that --start gives that frame.
        if (self._in_span - 1) % wanted.every:
            return Choice.SKIP
        self.taken += 1
        return Choice.TAKE


class FrameClock:
    """Turns a video's time stamps into exact, growing times in seconds from its own beginning.

    Containers store a time stamp as a whole number of ticks. Where a tick is coarser than the frame rate (Matroska:
    milliseconds), 30000/1001 frames per second read back as 33, 67, 100 ms; a stream whose rate is constant is put
    back on n / rate, so that the rate survives a round trip exactly.
    """

    def __init__(self, *, tick: Fraction, first: int | None, rate: Fraction, constant_rate: bool) -> None:
        """`tick` in seconds; `first` is the video's first time stamp in ticks; `rate` in frames per second."""
        self._tick = tick
        self._first = first
        self._rate = rate
        # Times were rounded only where a frame lasts no whole number of ticks.
        self._rounded = constant_rate and (1 / (rate * tick)).denominator != 1
        self._shift = Fraction(0)
        self._last: Fraction | None = None

    @property
    def time_base(self) -> Fraction:
        """Seconds; every time is a multiple of it."""
        if not self._rounded:
            return self._tick
        # Both the ticks and n / rate are whole multiples of it.
        return Fraction(1, math.lcm(self._tick.denominator, self._rate.numerator))

    @property
    def shifted(self) -> bool:
        """Whether a stamp did not grow, so that times no longer follow from their own stamps alone."""
        return self._shift != 0

    def time(self, stamp: int | None, *, index: int) -> Fraction:
        """Seconds of the frame with this time stamp; a frame without one is at index / rate.

        Stamps that do not grow (a broadcast whose clock was reset) go on one frame after the last,
        because no file format and no `--start` can deal with time that runs backwards.
        """
        seconds = self._unshifted(stamp, index) + self._shift
        if self._last is not None and seconds <= self._last:
            self._shift += self._last + 1 / self._rate - seconds
            seconds = self._last + 1 / self._rate
        self._last = seconds
        return seconds

    def _unshifted(self, stamp: int | None, index: int) -> Fraction:
        if stamp is None:
            return index / self._rate
        if self._first is None:
            self._first = stamp
        seconds = (stamp - self._first) * self._tick
        if self._rounded:
            on_grid = round(seconds * self._rate) / self._rate
            # One tick of slack: some muxers cut off where others round.
            if abs(on_grid - seconds) < self._tick:
                return on_grid
        return seconds


class Closing(ABC):
    """What has a `close()`, and therefore serves in a `with` statement: closed at its end, whatever happened in it."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
