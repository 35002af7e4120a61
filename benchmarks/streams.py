"""What surrounds the model: still frames, a folder on several threads, a video against its slowest part.

python benchmarks/streams.py -o benchmarks/results/streams.json

stills    what comparing two frames of 1280x720 takes, equal, or differing in the first or last byte
folder    images per second of a folder on 1, 2, ... threads; wall time, so on a quiet machine, beside CPU time.
          work_over_one_thread: CPU time an image over that of the first line, above 1 where threads hinder each other;
          over_one_core: images per second over those of a core that does all of the first line's work alone
windows   CPU time a window of an image of twice the model's height and width, its windows half apart: one after another
          on one thread, on two threads an operator, and two side by side
video     of each engine and precision: CPU time a frame of the three threads that share the work (decode; predict:
          pixels, model, classes; paint and encode), and the wall time of the run over that of the slowest of them;
          on a quiet machine with two cores, 1 is a perfect overlap
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clip import write_clip
from report import at_least, errors_in_a_line, output_file, publish

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.registry import engine_entry
from dovit_deploy.errors import DovitError
from dovit_deploy.runtime.contest import STANDARD, Candidate
from dovit_deploy.runtime.paint import save_image
from dovit_deploy.runtime.run import RunPlan, run_source
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.workers import Workers, workers_for
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame, Frame, Source
from dovit_deploy.sources.stills import equal_pixels
from dovit_scenes import street_frames

SIZE = (720, 1280)
WAYS = tuple(
    Candidate(engine, each) for engine in ("onnxruntime", "openvino") for each in engine_entry(engine).precisions
)
AT_ONCE = {"one": Workers(1, 1, 1), "two threads": Workers(1, 1, 2), "two side by side": Workers(1, 2, 1)}
THREADS = {"predict": "MainThread", "paint and encode": "dovit-writer"}
"""Of those that are still there when the last frame is written."""


def cpu_ms(step: Callable[[], object]) -> float:
    """CPU time of the process, all threads."""
    start = time.process_time()
    step()
    return 1e3 * (time.process_time() - start)


def comparing_ms(*, repeat: int) -> dict[str, float]:
    """CPU time of comparing a frame with the one before."""
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    figures = {}
    for name, position in (("equal", None), ("first byte differs", 0), ("last byte differs", -1)):
        other = frame.copy()
        if position is not None:
            other.reshape(-1)[position] ^= 1
        times = [cpu_ms(lambda other=other: equal_pixels(frame, other)) for _ in range(10 * repeat)]
        figures[name] = round(statistics.median(times), 4)
    return figures


def window_ms(bundle: Bundle, *, repeat: int) -> dict[str, float]:
    """CPU ms a window, medians of interleaved images."""
    manifest = bundle.manifest
    height, width = manifest.spec.size
    preprocessing = manifest.preprocessing.model_copy(update={"stride": (height // 2, width // 2)})
    sliding = replace(bundle, manifest=manifest.model_copy(update={"preprocessing": preprocessing}))
    (frame,) = street_frames(1, seed=0, size=(2 * height, 2 * width))
    settings = RunSettings.resolve(manifest)
    times: dict[str, list[float]] = {name: [] for name in AT_ONCE}
    with ExitStack() as stack:
        predictors = {}
        for name, at_once in AT_ONCE.items():
            session = stack.enter_context(Session(sliding, threads=at_once.threads, callers=at_once.callers))
            predictors[name] = Predictor(session, windows_at_once=at_once.windows)
        windows = len(predictors["one"].run(frame.rgb, settings).tokens.windows)
        for _ in range(repeat):
            for name, predictor in predictors.items():
                times[name].append(cpu_ms(partial(predictor.run, frame.rgb, settings)) / windows)
    # The first image of each allocates.
    return {name: round(statistics.median(found[1:] or found), 2) for name, found in times.items()}


def thread_seconds() -> dict[str, float]:
    """CPU time of every thread of Python's, by name."""
    idents = {thread.name: thread.ident for thread in threading.enumerate() if thread.ident is not None}
    return {name: time.clock_gettime(time.pthread_getcpuclockid(ident)) for name, ident in idents.items()}


def run_seconds(
    bundle: Bundle, source: Path, out: Path, threads: int | None, kinds: tuple[str, ...], way: Candidate = STANDARD
) -> tuple[dict[str, float], dict[str, float]]:
    """A whole run, as the command line makes it, without its start: figures, and each thread's CPU ms a frame."""
    with open_source(str(source)) as frames:
        images = frames.count if frames.kind == "images" else None
        at_once = workers_for(way.engine, images=images, windows=1, threads=threads)
        settings = RunSettings.resolve(bundle.manifest)
        plan = RunPlan(out, True, kinds, settings, at_once=at_once)
        with Session(
            bundle, engine=way.engine, precision=way.precision, threads=at_once.threads, callers=at_once.callers
        ) as session:
            marks, read = [thread_seconds()], [0.0]
            start = time.process_time()
            # Called by the writer, behind each frame: the last call sees all threads at work.
            outcome = run_source(
                session,
                frames,
                plan,
                stop=threading.Event(),
                advance=lambda saved: marks.append(thread_seconds()),
                failed=print,
                frames=noted(frames, read),
            )
            cpu = time.process_time() - start
    count = outcome.summary["frames"]
    busy = {part: marks[-1][name] - marks[0].get(name, 0.0) for part, name in THREADS.items()}
    busy["decode"] = read[-1]
    figures = {
        "frames": count,
        "seconds": round(outcome.seconds, 3),
        "per_second": round(count / outcome.seconds, 2),
        "cpu_ms_a_frame": round(1e3 * cpu / count, 2),
    }
    return figures, {part: 1e3 * seconds / count for part, seconds in busy.items()}


def noted(frames: Source, read: list[float]) -> Iterator[Frame | FailedFrame]:
    """All frames, and in `read` the CPU time of the thread that asks for them."""
    for frame in frames:
        read.append(time.thread_time())
        yield frame


def video_figures(bundle: Bundle, clip: Path, out: Path, way: Candidate) -> dict[str, Any]:
    """A run of a video against the slowest of its threads."""
    try:
        figures, busy = run_seconds(bundle, clip, out, 1, ("overlay",), way)
    except DovitError as error:
        return {"not measured": str(error)}
    over_slowest = 1e3 / figures["per_second"] / max(busy.values())
    threads_ms = {part: round(ms, 2) for part, ms in busy.items()}
    return {**figures, "thread_ms_a_frame": threads_ms, "over_slowest_thread": round(over_slowest, 3)}


def measure(bundle: Bundle, *, repeat: int, frames: int) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {"comparing_ms": comparing_ms(repeat=repeat)}
    figures["window_ms"] = window_ms(bundle, repeat=max(2, repeat // 4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        for number, frame in enumerate(street_frames(frames, seed=0, size=bundle.manifest.spec.size)):
            save_image(folder / f"{number:03d}.png", frame.rgb)
        write_clip(Path(name) / "clip.mp4", frames=frames, size=SIZE, rendered=8, seed=0)
        alone = 0.0
        for threads in range(1, (os.cpu_count() or 1) + 1):
            found, _ = run_seconds(bundle, folder, Path(name) / "out", threads, ("overlay", "masks"))
            alone = found["cpu_ms_a_frame"] if threads == 1 else alone
            found["work_over_one_thread"] = round(found["cpu_ms_a_frame"] / alone, 3)
            found["over_one_core"] = round(found["per_second"] * alone / 1e3, 3)
            figures[f"folder, {threads} threads"] = found
        for way in WAYS:
            label = f"video, one thread, {way}"
            figures[label] = video_figures(bundle, Path(name) / "clip.mp4", Path(name) / "seen", way)
    return figures


@errors_in_a_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--repeat", type=at_least(1), default=25)
    parser.add_argument("--frames", type=at_least(1), default=60)
    parser.add_argument("-o", "--output", type=output_file)
    options = parser.parse_args()
    with Session(options.bundle, threads=1) as session:
        bundle = session.bundle
    figures = measure(bundle, repeat=options.repeat, frames=options.frames)
    publish({"figures": figures}, command="python benchmarks/streams.py", output=options.output)


if __name__ == "__main__":
    main()
