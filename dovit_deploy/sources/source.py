"""What a source of pictures is, and which of its pictures are wanted.

Source      images | video | live   ->   Frame, Frame, FailedFrame, Frame, ...
Selection   --start --end --every --max-frames, as data
Selector    the same as a decision per picture, taken before a pixel of it is converted
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import UsageError

RGB = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, red first, upright."""
Kind = Literal["images", "video", "live"]


@dataclass(frozen=True)
class Frame:
    """One picture of a source."""

    rgb: RGB
    """(H, W, 3) uint8, upright."""
    index: int
    """Position in the source, from 0, before `--every` and `--start` select."""
    source: str
    """File name, device or address."""
    time_s: Fraction
    """Presentation time in seconds, exact; 0 for images."""
    decode_ms: float = 0.0


@dataclass(frozen=True)
class FailedFrame:
    """A picture that could not be read; the ones after it still come."""

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
    """Pictures, one after another; a context manager; iterated once, by one thread."""

    @property
    def kind(self) -> Kind:
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
        """Give back the file, connection or camera; may be called twice."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Selection:
    """Which pictures of a source are wanted.

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
        """How many of `count` pictures in the span are taken."""
        taken = -(-count // self.every)
        return taken if self.max_frames is None else min(taken, self.max_frames)

    def expected(self, total: int | None, rate: Fraction) -> int | None:
        """How many of a video's `total` frames are taken, at a constant rate."""
        if self.end is not None:
            within = math.ceil(self.end * rate)
            total = within if total is None else min(total, within)
        if total is None:
            return self.max_frames
        return self.thin(max(total - math.ceil((self.start or 0) * rate), 0))


class Choice(Enum):
    """What to do with the picture at hand."""

    TAKE = "take"
    SKIP = "skip"
    STOP = "stop"


class Selector:
    """Applies a Selection to pictures in order of time."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._in_span = 0
        self._taken = 0

    @property
    def done(self) -> bool:
        """Whether `--max-frames` are taken, so that not even the next picture need be decoded."""
        return self._taken == self._selection.max_frames

    def judge(self, time_s: Fraction) -> Choice:
        """Decide on the picture at `time_s`, which must not be before the last one judged."""
        wanted = self._selection
        if wanted.start is not None and time_s < wanted.start:
            return Choice.SKIP
        if self.done or (wanted.end is not None and time_s >= wanted.end):
            return Choice.STOP
        self._in_span += 1
        if (self._in_span - 1) % wanted.every:
            return Choice.SKIP
        self._taken += 1
        return Choice.TAKE


# What has a `close()` and therefore serves in a `with` statement.


class Closing(ABC):
    """Closed at the end of its `with` block, whatever happened in it."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
