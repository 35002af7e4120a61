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
from pathlib import Path

import psutil
from clip import write_clip
from report import output_file, publish


def watch(command: list[str], report: Path) -> list[tuple[int, float]]:
    """(frames done, resident MiB) until the command ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[tuple[int, float]] = []
    running = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            resident = running.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            break
        # The report grows by a line a frame, in the folder that is renamed at the end.
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
    parser.add_argument("-o", "--output", type=output_file)
    arguments = parser.parse_args()
    if arguments.frames < 300:
        parser.error(f"--frames {arguments.frames}: at least 300 are needed, the first hundred warm up")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder / "long.mp4", frames=arguments.frames, size=(240, 320), rendered=30, seed=3)
        command = [sys.executable, "-m", "dovit_deploy", "run", f"{folder}/long.mp4", "-o", f"{folder}/out", "-q"]
        seen = watch(command, folder / "out.partial" / "frames.jsonl")
    # ONNX Runtime and the decoder take their memory within the first frames.
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
