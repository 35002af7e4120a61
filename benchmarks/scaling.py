"""How long would an archive take on 10, 100 or 1,000 workers, some of which fail? Recorded costs of frames, replayed.

    python benchmarks/scaling.py out/*/ --hours 1000 --workers 10 100 1000 --failures 0.1

Reads the `frames.jsonl` of results of `dovit run` or `dovit batch`, cuts them into segments, repeats these until they
are `--hours` of video, and hands them to workers as `dovit batch` does: whoever is free takes the next one. A worker
that fails loses what it was at and is back after `--restart` seconds. The driver merges one source after another, at
the same time, at `--merge-ms` a frame. Nothing is computed: it is arithmetic on what was measured.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Segment:
    """What is computed without a break."""

    frames: int
    seconds: float
    """That a worker is busy with it."""
    video_s: float


@dataclass(frozen=True)
class Replay:
    """What came of it."""

    seconds: float
    """Until the last segment is done."""
    busy: tuple[float, ...]
    """Of each worker, lost work included."""
    lost: float
    """Seconds of work that failures cost."""

    @property
    def use(self) -> float:
        """The fraction of the workers' time in which something was computed that counts."""
        return (sum(self.busy) - self.lost) / (len(self.busy) * self.seconds)

    @property
    def spread(self) -> float:
        """By how much the busiest worker is above the least busy one, as a fraction."""
        return max(self.busy) / min(self.busy) - 1 if min(self.busy) else float("inf")


def segments_from_rows(path: Path, seconds: float, overhead: float) -> list[Segment]:
    """The rows of one result, cut as a batch cuts them; each costs `overhead` seconds beside its frames."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = []
    for _, group in itertools.groupby(rows, key=lambda row: int(row["time_s"] // seconds)):
        frames = list(group)
        cost = sum(row["latency_ms"]["total"] for row in frames) / 1e3
        step = (rows[-1]["time_s"] - rows[0]["time_s"]) / max(len(rows) - 1, 1)
        found.append(Segment(len(frames), cost + overhead, len(frames) * step))
    return found


def replay(
    segments: Sequence[Segment], workers: int, *, failures: float = 0.0, restart: float = 30.0, seed: int = 0
) -> Replay:
    """Hand `segments` to `workers`, in their order.

    Args:
        segments: what there is to compute.
        workers: how many.
        failures: of a worker, in an hour that it is busy.
        restart: seconds until it is back.
        seed: of the failures.
    """
    chance = random.Random(seed)
    free = [(0.0, number) for number in range(workers)]
    busy, lost, end = [0.0] * workers, 0.0, 0.0
    for segment in segments:
        left = segment.seconds
        while True:
            now, number = heapq.heappop(free)
            fails = chance.expovariate(failures / 3600) if failures else float("inf")
            worked = min(left, fails)
            busy[number] += worked
            if fails >= left:
                heapq.heappush(free, (now + worked, number))
                end = max(end, now + worked)
                break
            # Another one begins it anew.
            lost += worked
            heapq.heappush(free, (now + worked + restart, number))
    return Replay(end, tuple(busy), lost)


def repeated(segments: Sequence[Segment], hours: float) -> list[Segment]:
    """The segments again and again, until they are so many hours of video."""
    found, video_s = list[Segment](), 0.0
    for segment in itertools.cycle(segments):
        if video_s >= hours * 3600:
            return found
        found.append(segment)
        video_s += segment.video_s
    return found


def scaled(segments: Sequence[Segment], mean_ms: float, *, overhead: float) -> list[Segment]:
    """The segments with a mean of so many milliseconds a frame; what differs between them stays in proportion."""
    computing = sum(segment.seconds - overhead for segment in segments)
    factor = mean_ms / 1e3 * sum(segment.frames for segment in segments) / computing
    return [
        Segment(segment.frames, (segment.seconds - overhead) * factor + overhead, segment.video_s)
        for segment in segments
    ]


def main() -> None:
    """Print one line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="folders with a frames.jsonl of videos")
    parser.add_argument("--hours", type=float, default=1000.0, help="of video")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--segment-seconds", type=float, default=10.0)
    parser.add_argument("--overhead", type=float, default=0.5, help="seconds a segment: opening, seeking, writing")
    parser.add_argument(
        "--mean-ms", type=float, help="scale the frames to this mean, where a busy machine was measured"
    )
    parser.add_argument("--failures", type=float, default=0.1, help="of a worker, in an hour")
    parser.add_argument("--restart", type=float, default=30.0, help="seconds until a worker is back")
    parser.add_argument("--merge-ms", type=float, default=10.0, help="of the driver, a frame")
    given = parser.parse_args()
    measured = [
        segment
        for folder in given.results
        for segment in segments_from_rows(folder / "frames.jsonl", given.segment_seconds, given.overhead)
    ]
    if not any(segment.video_s for segment in measured):
        parser.error("these results have no time: give results of videos")
    if given.mean_ms is not None:
        measured = scaled(measured, given.mean_ms, overhead=given.overhead)
    segments = repeated(measured, given.hours)
    frames, work = sum(segment.frames for segment in segments), sum(segment.seconds for segment in segments)
    merging = frames * given.merge_ms / 1e3
    print(f"{len(segments)} segments, {frames} frames; {work / given.hours:.0f} core-seconds an hour of video")
    for workers in given.workers:
        for failures in (0.0, given.failures):
            done = replay(segments, workers, failures=failures, restart=given.restart)
            print(
                f"{workers} workers, {failures:g} failures an hour: {done.seconds / 3600:.2f} h computing, "
                f"workers in use {done.use:.1%}, lost {done.lost / work:.2%}, merging {merging / 3600:.2f} h"
            )


if __name__ == "__main__":
    main()
