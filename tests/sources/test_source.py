from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.errors import UsageError
from dovit_deploy.sources.source import Choice, FrameSelection, Selector

seconds = st.fractions(min_value=0, max_value=4, max_denominator=50)


@settings(derandomize=True, max_examples=200)
@given(
    total=st.integers(0, 60),
    every=st.integers(1, 9),
    max_frames=st.none() | st.integers(1, 20),
    start=st.none() | seconds,
    length=st.none() | seconds.filter(bool),
)
def test_the_selector_takes_what_slicing_takes(total, every, max_frames, start, length):
    rate = Fraction(30000, 1001)
    end = None if length is None else (start or 0) + length
    selection = FrameSelection(every=every, max_frames=max_frames, start=start, end=end)
    times = [index / rate for index in range(total)]
    span = [t for t in times if t >= (start or 0) and (end is None or t < end)]
    expected = span[::every][:max_frames]

    selector, taken = Selector(selection), []
    for time_s in times:
        if selector.done:
            break
        choice = selector.judge(time_s)
        if choice is Choice.STOP:
            break
        if choice is Choice.TAKE:
            taken.append(time_s)
    assert taken == expected
    assert selection.expected(total, rate) == len(expected)


def test_nothing_is_decoded_after_the_last_wanted_frame():
    selector = Selector(FrameSelection(max_frames=2))
    selector.judge(Fraction(0))
    assert not selector.done
    selector.judge(Fraction(1))
    assert selector.done


def test_an_unknown_length_is_bounded_by_what_was_asked():
    assert FrameSelection().expected(None, Fraction(25)) is None
    assert FrameSelection(max_frames=7).expected(None, Fraction(25)) == 7
    assert FrameSelection(end=Fraction(2), every=2).expected(None, Fraction(25)) == 25


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"every": 0}, "--every 0"),
        ({"max_frames": 0}, "--max-frames 0"),
        ({"start": Fraction(-1)}, "--start -1"),
        ({"end": Fraction(0)}, "--end 0"),
        ({"start": Fraction(5, 2), "end": Fraction(5, 2)}, "--end 2.5"),
    ],
)
def test_selections_that_make_no_sense(arguments, flag):
    with pytest.raises(UsageError, match=flag):
        FrameSelection(**arguments)


def test_after_the_last_wanted_frame_no_further_one_is_decoded() -> None:
    decoded: list[int] = []

    def frames():
        for index in range(10):
            decoded.append(index)
            yield index, Fraction(index), f"frame {index}"

    selector = Selector(FrameSelection(every=2, max_frames=2, start=Fraction(1)))
    assert list(selector.select(frames())) == [(1, 1, "frame 1"), (3, 3, "frame 3")]
    assert decoded == [0, 1, 2, 3] and (selector.seen, selector.taken, selector.exhausted) == (4, 2, False)


def test_a_source_that_ends_first_is_exhausted() -> None:
    selector = Selector(FrameSelection(max_frames=9))
    assert len(list(selector.select((n, Fraction(n), None) for n in range(3)))) == 3
    assert selector.exhausted
