"""Exact, growing times of video frames, in seconds from the video's own beginning.

Containers store a time stamp as a whole number of ticks. Where a tick is coarser than the frame
rate (Matroska: milliseconds), 30000/1001 frames per second read back as 33, 67, 100 ms; a stream whose
rate is constant is put back on n / rate, so that the rate survives a round trip exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction


class FrameClock:
    """Turns time stamps into `Frame.time_s`."""

    def __init__(self, *, tick: Fraction, first: int | None, rate: Fraction, constant_rate: bool) -> None:
        """`tick` in seconds; `first` is the video's first time stamp in ticks; `rate` in frames per second."""
        self._tick = tick
        self._first = first
        self._rate = rate
        self._rounded = constant_rate and (1 / (rate * tick)).denominator != 1
        self._shift = Fraction(0)
        self._last: Fraction | None = None

    @property
    def time_base(self) -> Fraction:
        """Seconds; every time is a multiple of it."""
        if not self._rounded:
            return self._tick
        return Fraction(1, math.lcm(self._tick.denominator, self._rate.numerator))

    def time(self, stamp: int | None, *, index: int) -> Fraction:
        """Seconds of the frame with this time stamp; a frame without one lies at index / rate.

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
