"""Where can a video be cut, so that its parts give exactly the frames of the whole?

An index is made of the packets alone, without decoding. A segment is cut at a frame, wherever that lies among the
key frames. Who reads it begins one key frame earlier than needed, since the frames before a key frame in time may
refer to what lies before it in the file; discards by time stamp; and begins with the last frame of the segment before,
which both must decode alike. Whatever the packets do not show is found when the frames are counted: then, and where
the index says so, the video is one segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import SourceError
from dovit_deploy.record import Record
from dovit_deploy.sources.source import Choice, Frame, FrameSelection, Selector
from dovit_deploy.sources.video import VideoReader

Stamps = npt.NDArray[np.int64]


class NotAsIndexed(SourceError):
    """A segment does not decode as the packets of the file promise; the video is read as a whole instead."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: its frames are not those that its packets promise")


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video in order of presentation, by their packets."""

    stamps: Stamps
    """Time stamps in ticks of the stream, rising; the position is the frame's index."""
    times: tuple[Fraction, ...]
    """Seconds of each frame."""
    keys: Stamps
    """Time stamps of the key frames, rising."""

    def taken(self, selection: FrameSelection) -> list[int]:
        """Indices of the frames that `selection` takes."""
        selector, taken = Selector(selection), list[int]()
        for index, time in enumerate(self.times):
            choice = selector.judge(time)
            if choice is Choice.STOP:
                break
            if choice is Choice.TAKE:
                taken.append(index)
            if selector.done:
                break
        return taken

    def key_before(self, stamp: int) -> int | None:
        """The key frame before the last one at or before `stamp`; None: there is none, and one begins at the front."""
        position = int(np.searchsorted(self.keys, stamp, side="right")) - 2
        return int(self.keys[position]) if position > 0 else None


class VideoSegment(Record):
    """Every `every`-th frame from one to another, with what it takes to find and check them."""

    key: int | None
    """The time stamp of the key frame from which it is decoded; None: from the beginning of the file."""
    before: int | None
    """The time stamp of the frame taken before its first one; None: there is none."""
    first: int
    """Index of the first frame."""
    first_stamp: int
    last: int
    last_stamp: int
    every: int

    @property
    def frames(self) -> int:
        """How many there are."""
        return (self.last - self.first) // self.every + 1


def index_from_packets(reader: VideoReader) -> VideoIndex | str:
    """The index of the file that `reader` reads, or why it has none."""
    with reader.opened_decoder() as decoder:
        if not decoder.has_time_stamps or decoder.timed_by_clock:
            return "its format stores no time stamps"
        stamps, keys, latest = list[int](), list[int](), None
        for packet in decoder.packets():
            if packet is None:
                break
            if packet.pts is None or packet.dts is None or (latest is not None and packet.dts < latest):
                return "its packets do not show when their frames are seen"
            if packet.is_corrupt:
                return "it is damaged"
            latest = packet.dts
            if not packet.is_discard:
                stamps.append(packet.pts)
                keys += [packet.pts] if packet.is_keyframe else []
        if decoder.fault is not None:
            return f"it is damaged ({decoder.fault})"
    return _checked(stamps, keys, reader)


def _checked(stamps: list[int], keys: list[int], reader: VideoReader) -> VideoIndex | str:
    ordered = np.array(sorted(stamps), dtype=np.int64)
    if len(keys) < 2:
        return "it has no second key frame to begin at"
    if (np.diff(ordered) <= 0).any():
        return "two of its frames have one time stamp"
    clock = reader.clock()
    times = tuple(clock.time(int(stamp), index=index) for index, stamp in enumerate(ordered))
    # Of such a video a time depends on all frames before it.
    if clock.shifted:
        return "its time stamps do not grow"
    return VideoIndex(ordered, times, np.array(sorted(keys), dtype=np.int64))


def segments_of(index: VideoIndex, selection: FrameSelection, seconds: float) -> list[VideoSegment]:
    """The frames that `selection` takes, cut where `seconds` have passed since the first of them."""
    taken = index.taken(selection)
    length, begin = Fraction(str(seconds)), index.times[taken[0]] if taken else Fraction(0)
    found, former = list[VideoSegment](), None
    for _, group in itertools.groupby(taken, key=lambda number: (index.times[number] - begin) // length):
        numbers = list(group)
        first, last = numbers[0], numbers[-1]
        needed = int(index.stamps[first if former is None else former])
        found.append(
            VideoSegment(
                key=index.key_before(needed),
                before=None if former is None else needed,
                first=first,
                first_stamp=int(index.stamps[first]),
                last=last,
                last_stamp=int(index.stamps[last]),
                every=selection.every,
            )
        )
        former = last
    return found


def frames_of_segment(reader: VideoReader, segment: VideoSegment) -> Iterator[Frame]:
    """The frame before the segment, if it has one, then its frames, as the whole video gives them.

    Raises:
        NotAsIndexed: they are not what the index promises.
    """
    clock, began = reader.clock(), perf_counter()
    needed = segment.first_stamp if segment.before is None else segment.before
    index = segment.first - segment.every if segment.before is not None else segment.first
    wanted = index
    for frame in _from(reader, segment.key, needed):
        if index == wanted:
            time_s = clock.time(frame.pts, index=index)
            expected = {segment.first: segment.first_stamp, segment.last: segment.last_stamp}.get(index, frame.pts)
            if frame.pts != expected:
                raise NotAsIndexed(reader.name)
            rgb = reader.rgb_of(frame)
            yield Frame(rgb, index, reader.name, time_s, (perf_counter() - began) * 1e3)
            wanted, began = wanted + segment.every, perf_counter()
        if index == segment.last:
            return
        index += 1
    raise NotAsIndexed(reader.name)


def _from(reader: VideoReader, key: int | None, needed: int) -> Iterator[Any]:
    """Decoded frames from that with the time stamp `needed` on."""
    with reader.opened_decoder() as decoder:
        if key is not None and not decoder.sought(key):
            raise NotAsIndexed(reader.name)
        passed = False
        for frame in decoder.frames():
            if frame.pts is None or (not passed and frame.pts > needed):
                # The container went elsewhere, or the frame is missing.
                raise NotAsIndexed(reader.name)
            passed = passed or frame.pts == needed
            if passed:
                yield frame
