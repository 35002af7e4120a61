"""Whole commands: how long `dovit run --help` takes, and whether decode, infer and encode overlap.

    python benchmarks/commands.py -o benchmarks/results/commands.json

The overlap is the wall time of a whole `dovit run` on a rendered 1280x720 clip, less a run of one frame (start-up),
per frame, over the time per frame of its slowest step: preprocess, model and postprocess, which share a thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clip import write_clip
from report import at_least, output_file, publish

DOVIT = [sys.executable, "-m", "dovit_deploy"]
SIZE = (720, 1280)


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def help_seconds(repeat: int) -> dict[str, float]:
    """Of `dovit run --help`, after one run that fills the file cache."""
    # The first start reads everything from disk.
    times = [seconds([*DOVIT, "run", "--help"]) for _ in range(repeat + 1)][1:]
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def overlap(frames: int, threads: int, repeat: int) -> dict[str, float]:
    """Wall time per frame against the slowest step, medians over `repeat` runs."""
    ratios, walls, steps = [], [], []
    with tempfile.TemporaryDirectory() as name:
        clip = Path(name) / "clip.mp4"
        write_clip(clip, frames=frames, size=SIZE, rendered=8, seed=5)
        for number in range(repeat):
            run = [*DOVIT, "run", str(clip), "--threads", str(threads), "-q", "-o"]
            one = seconds([*run, f"{name}/one{number}", "--max-frames", "1"])
            # Less the start-up, which one frame shows.
            wall = (seconds([*run, f"{name}/all{number}"]) - one) / (frames - 1)
            summary = json.loads(Path(f"{name}/all{number}/summary.json").read_text())["latency_ms"]
            # These three share the caller's thread; decoding and writing have threads of their own.
            step = sum(summary[part]["mean"] for part in ("preprocess", "model", "postprocess")) / 1e3
            ratios.append(wall / step)
            walls.append(wall)
            steps.append(step)
    return {
        "wall_ms_per_frame": 1e3 * statistics.median(walls),
        "slowest_step_ms": 1e3 * statistics.median(steps),
        "wall_over_slowest_step": statistics.median(ratios),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=at_least(2), default=150)
    parser.add_argument("--repeat", type=at_least(1), default=5)
    parser.add_argument("-o", "--output", type=output_file)
    arguments = parser.parse_args()
    figures = {
        "help_seconds": help_seconds(2 * arguments.repeat),
        "overlap, 1 thread": overlap(arguments.frames, 1, arguments.repeat),
    }
    publish(
        figures,
        command=f"python benchmarks/commands.py --frames {arguments.frames} --repeat {arguments.repeat}",
        output=arguments.output,
    )


if __name__ == "__main__":
    main()
