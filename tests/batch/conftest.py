"""Clips, folders, and `dovit batch` with workers in this process instead of Ray's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy import interruption, packages
from dovit_deploy.batch.rows import BatchRow
from dovit_deploy.batch.work import RowOutcome, WorkPlan, in_this_process
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands import batch_steps

SIZE = (48, 64)
STILLS = (9, 10, 11)
"""Frames of a clip that repeat the one before."""


def write_clip(
    path: Path, frames: int, *, seed: int = 0, codec: str = "libx264", rate: int = 10, **options: str
) -> Path:
    """A moving clip with key frames every 4 frames, some of which are B-frames; a few frames stand still."""
    random = np.random.default_rng(seed)
    canvas = random.integers(0, 256, (SIZE[0], SIZE[1] + 4 * frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as output:
        given = {"g": "4", "bf": "2", "x264-params": "open-gop=1:keyint=4:min-keyint=4:scenecut=0", "crf": "10"}
        stream = output.add_stream(codec, rate=rate, options=(given if codec == "libx264" else {}) | options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(frames):
            left = 4 * (STILLS[0] - 1 if number in STILLS else number)
            image = np.ascontiguousarray(canvas[:, left : left + SIZE[1]])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_images(folder: Path, count: int, *, seed: int = 0) -> Path:
    """A folder of photographs of noise."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


class InProcess:
    """In place of a cluster: rows are computed here, and a test may interfere before each of them."""

    def __init__(self, before: Callable[[BatchRow], None]) -> None:
        self.before = before
        self.computed: list[str] = []

    def execute(self, plan: WorkPlan, rows: Sequence[BatchRow]) -> Iterator[RowOutcome | None]:
        def watched() -> Iterator[BatchRow]:
            for row in rows:
                self.before(row)
                self.computed.append(row.name)
                yield row

        return in_this_process(plan, watched())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line computes rows in this process; Ray is not asked for."""
    here = InProcess(lambda row: None)

    @contextmanager
    def connected(address: str | None, *, workers: int | None, threads: int) -> Iterator[Any]:
        del address, workers, threads
        yield here

    monkeypatch.setattr(batch_steps, "connected", connected)
    monkeypatch.setattr(packages, "ray_data", lambda: None)
    monkeypatch.setattr(interruption._Requests, "last", float("-inf"))
    return here


def dovit(verb: str, bundle: Path, *words: str | Path) -> int:
    """The command line, in this process, in an engine that answers alike every time."""
    fixed = ["--bundle", str(bundle), "--engine", "onnxruntime", "--threads", "1", "--quiet"]
    return _run(_application(), [verb, *map(str, words), *fixed])


TIMES = ("latency_ms", "compiled")


def without_times(value: Any) -> Any:
    """JSON without what took how long; `audit.ms` and what follows from it, too."""
    if isinstance(value, dict):
        timed = (*TIMES, "ms", "seconds", "compiling", "memory_free_gb")
        return {name: without_times(part) for name, part in value.items() if name not in timed}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def assert_like_run(result: Path, run: Path) -> None:
    """The same files; rows and summaries equal but for times, masks and maps byte for byte."""
    files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert files == {path.relative_to(result) for path in result.rglob("*") if path.is_file()}
    for name in files:
        mine, theirs = (folder / name for folder in (result, run))
        if name.name == "frames.jsonl":
            rows = [[without_times(json.loads(line)) for line in path.open()] for path in (mine, theirs)]
            # As text: the order of the keys is the same, too.
            assert [json.dumps(row) for row in rows[0]] == [json.dumps(row) for row in rows[1]]
        elif name.name == "summary.json":
            mine, theirs = (json.dumps(without_times(json.loads(path.read_bytes()))) for path in (mine, theirs))
            assert mine == theirs
        elif name.suffix == ".png" and name.parts[0] != "overlay":
            assert mine.read_bytes() == theirs.read_bytes(), name
