from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.runtime.frame_clock import FrameClock

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(60), Fraction(30)])
@pytest.mark.parametrize("cut", [round, int])
def test_milliseconds_of_a_constant_rate_are_put_back_on_it(rate, cut):
    clock = FrameClock(tick=Fraction(1, 1000), first=0, rate=rate, constant_rate=True)
    for index in range(400):
        time_s = clock.time(cut(index / rate * 1000), index=index)
        assert time_s == index / rate
        assert (time_s / clock.time_base).denominator == 1


def test_a_variable_rate_keeps_its_stamps():
    clock = FrameClock(tick=Fraction(1, 1000), first=10, rate=NTSC, constant_rate=False)
    stamps = [10, 43, 143, 144, 190]
    assert [clock.time(s, index=0) for s in stamps] == [Fraction(s - 10, 1000) for s in stamps]
    assert clock.time_base == Fraction(1, 1000)


def test_frames_without_stamps_lie_on_the_rate():
    clock = FrameClock(tick=Fraction(1, 1200000), first=None, rate=NTSC, constant_rate=False)
    assert [clock.time(None, index=i) for i in range(3)] == [0, 1 / NTSC, 2 / NTSC]


@settings(derandomize=True, max_examples=100)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_times_always_grow(stamps):
    clock = FrameClock(tick=Fraction(1, 90), first=stamps[0], rate=Fraction(30), constant_rate=False)
    times = [clock.time(stamp, index=index) for index, stamp in enumerate(stamps)]
    assert times[0] == 0
    assert all(a < b for a, b in itertools.pairwise(times))


def test_after_a_reset_the_steps_are_kept():
    clock = FrameClock(tick=Fraction(1, 100), first=500, rate=Fraction(25), constant_rate=False)
    times = [clock.time(stamp, index=0) for stamp in (500, 504, 508, 0, 4, 8)]
    assert times == [Fraction(4 * n, 100) for n in range(6)]
