"""Resident memory of `dovit run` over a long video: flat after the first hundred frames?

    python benchmarks/memory.py -o benchmarks/results/memory.json

A clip of 2,000 frames (rendered frames repeated) goes through the real command line in a process of its own, whose
resident set is read twice a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import psutil
from report import publish

from dovit_deploy.sources.video_writer import open_video_writer
from dovit_scenes import street_frames


def make_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """A clip of `frames` frames, thirty rendered ones repeated."""
    pictures = [frame.rgb for frame in street_frames(30, seed=3, size=size)]
    with open_video_writer(path, size=size, rate=Fraction(25)) as writer:
        for number in range(frames):
            writer.write(pictures[number % len(pictures)], Fraction(number, 25))


def watch(command: list[str], report: Path) -> list[tuple[int, float]]:
    """(frames done, resident MiB) until the command ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[tuple[int, float]] = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            resident = watched.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            break
        done = report.read_bytes().count(b"\n") if report.is_file() else 0
        seen.append((done, resident))
        time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clip(folder / "long.mp4", arguments.frames, (240, 320))
        command = [
            sys.executable,
            "-m",
            "dovit_deploy",
            "run",
            str(folder / "long.mp4"),
            "-o",
            str(folder / "out"),
            "-q",
        ]
        seen = watch(command, folder / "out.partial" / "frames.jsonl")
    steady = [resident for done, resident in seen if done >= 100]
    third = len(steady) // 3
    figures = {
        "frames": arguments.frames,
        "resident_mib": {
            "after 100 frames": steady[0],
            "mean of the first third": sum(steady[:third]) / third,
            "mean of the last third": sum(steady[-third:]) / third,
            "most": max(steady),
        },
    }
    publish(figures, command=f"python benchmarks/memory.py --frames {arguments.frames}", output=arguments.output)


if __name__ == "__main__":
    main()
