"""How a run shares its threads: one image each, never more threads than were given."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import MANIFEST, Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime import auto, workers
from dovit_deploy.runtime.outputs import RunOutputs
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.workers import MOST_WORKERS, Workers, in_order, workers_for
from dovit_deploy.sources.video_writer import open_video_writer


@given(
    st.integers(1, 64),
    st.none() | st.integers(1, 1000),
    st.integers(1, 40),
    st.sampled_from(["onnxruntime", "openvino"]),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_a_run_takes_the_threads_that_it_was_given_and_no_more(threads, images, windows, engine):
    found = workers_for(engine, images=images, windows=windows, threads=threads)
    assert 1 <= found.images <= min(images or 1, MOST_WORKERS) and 1 <= found.windows <= min(windows, MOST_WORKERS)
    assert found.threads is not None and found.threads >= 1 and found.callers == found.images * found.windows
    assert found.callers * found.threads <= threads < found.callers * (found.threads + 1) + found.images
    # Windows get what images leave.
    assert found.images == min(threads, images or 1, MOST_WORKERS)


def test_without_a_number_it_is_every_core_that_the_process_may_use(monkeypatch):
    class Machine:
        cores = 6

    monkeypatch.setattr(workers, "this_machine", Machine)
    assert workers_for("onnxruntime", images=100, windows=9, threads=None) == Workers(6, 1, 1)
    assert workers_for("onnxruntime", images=2, windows=1, threads=None) == Workers(2, 1, 3)
    assert workers_for("onnxruntime", images=2, windows=9, threads=None) == Workers(2, 3, 1)
    assert workers_for("onnxruntime", images=None, windows=2, threads=None) == Workers(1, 2, 3)


@pytest.mark.parametrize(
    ("engine", "images", "windows"),
    [("onnxruntime", None, 1), ("onnxruntime", 1, 1), ("torch", 9, 9), ("cuda", 9, 9)],
)
def test_one_stream_one_image_and_other_engines_go_one_after_another(engine, images, windows):
    assert workers_for(engine, images=images, windows=windows, threads=None) == Workers(1, 1, None)
    assert workers_for(engine, images=images, windows=windows, threads=4) == Workers(1, 1, 4)


def test_results_come_in_order_and_as_many_are_begun_as_are_asked_for():
    begun: list[int] = []
    both = threading.Barrier(2)

    def work(number: int) -> int:
        begun.append(number)
        if number < 2:
            # Each waits for the other, so this ends only where two are at work.
            both.wait(10)
        return 10 * number

    with ThreadPoolExecutor(8) as pool:
        results = in_order(pool, work, range(6), at_once=2)
        assert not begun
        assert next(results) == 0
        pool.submit(int).result()
        # Two were begun, and a third before the first result was handed over.
        assert sorted(begun) == [0, 1, 2]
        assert list(results) == [10, 20, 30, 40, 50]


def test_an_error_comes_in_its_turn_and_nothing_more_is_begun():
    begun: list[int] = []

    def work(number: int) -> float:
        begun.append(number)
        return 1 / (number - 2)

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), at_once=3)
        assert [next(results), next(results)] == [-0.5, -1.0]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert len(begun) <= 6


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_folder_on_several_threads_is_what_it_is_on_one(engine, tiny_bundle_path, tmp_path: Path) -> None:
    if not packages.is_there(engine):
        pytest.skip(f"the package {engine} is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        # Of unequal sizes, so that some are done before those that came first.
        size = (70 + 60 * (number % 3), 90, 3)
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "4b.png").write_bytes(b"no image")
    words = ["run", str(folder), "--bundle", str(tiny_bundle_path), "--engine", engine, "--save", "masks,tokens"]
    rows = {}
    for threads in (1, 3):
        out = tmp_path / str(threads)
        assert _run(_application(), [*words, "-o", str(out), "--threads", str(threads)]) == 7
        rows[threads] = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
        for row in rows[threads]:
            assert row.pop("latency_ms")["total"] > 0
            # Which image meets a size first depends on the order, as its latency does.
            row.pop("compiled", None)
    assert rows[1] == rows[3] and [Path(row["source"]).stem for row in rows[3]] == list("012345678")
    for kind in ("masks", "tokens"):
        files = sorted((tmp_path / "1" / kind).iterdir())
        assert len(files) == 9
        for path in files:
            assert path.read_bytes() == (tmp_path / "3" / kind / path.name).read_bytes()


@pytest.mark.parametrize(("threads", "painter"), [(1, "dovit-writer"), (2, "dovit-worker")])
def test_who_predicts_also_paints_where_there_are_several(threads, painter, tiny_bundle_path, tmp_path, monkeypatch):
    folder, painters, painted = tmp_path / "folder", set(), RunOutputs.painted
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((60, 80, 3), 40 * number, dtype=np.uint8)).save(folder / f"{number}.png")

    def noted(self, result):
        painters.add(threading.current_thread().name.partition("_")[0])
        return painted(self, result)

    monkeypatch.setattr(RunOutputs, "painted", noted)
    words = ["run", str(folder), "--bundle", str(tiny_bundle_path), "--engine", "onnxruntime"]
    assert _run(_application(), [*words, "-o", str(tmp_path / "out"), "--threads", str(threads)]) == 0
    assert painters == {painter}
    assert len(list((tmp_path / "out/overlay").iterdir())) == len(list((tmp_path / "out/masks").iterdir())) == 4


@pytest.fixture(scope="module")
def sliding_bundle(tiny_bundle_path, tmp_path_factory) -> Path:
    """The tiny bundle with windows that overlap by half."""
    path = tmp_path_factory.mktemp("sliding") / "sliding.dovit"
    shutil.copytree(tiny_bundle_path, path)
    manifest = Bundle.open(path).manifest
    height, width = manifest.spec.size
    preprocessing = manifest.preprocessing.model_copy(update={"stride": (height // 2, width // 2)})
    (path / MANIFEST).write_text(manifest.model_copy(update={"preprocessing": preprocessing}).to_json())
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_windows_side_by_side_give_the_bits_of_one_after_another(engine, sliding_bundle, tmp_path, monkeypatch) -> None:
    if not packages.is_there(engine):
        pytest.skip(f"the package {engine} is not installed")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 150, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ["run", str(tmp_path / "a.png"), "--bundle", str(sliding_bundle), "--engine", engine]
    running, most, lock = 0, 0, threading.Lock()
    run_one = Session.run_one

    def counted(self, pixels, settings):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            # Long enough that whoever may run beside it does.
            time.sleep(0.002)
            return run_one(self, pixels, settings)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(Session, "run_one", counted)
    rows, reached = {}, {}
    for threads in (1, 3):
        most, out = 0, tmp_path / str(threads)
        assert _run(_application(), [*words, "--save", "masks,tokens", "-o", str(out), "--threads", str(threads)]) == 0
        (rows[threads],) = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
        assert rows[threads].pop("latency_ms")["total"] > 0
        # Every session of windows side by side compiles for itself.
        rows[threads].pop("compiled", None)
        reached[threads] = most
    assert rows[1] == rows[3] and rows[1]["windows"] == 16
    assert reached == {1: 1, 3: 3}
    for kind in ("masks", "tokens"):
        assert (tmp_path / "1" / kind / "a.png").read_bytes() == (tmp_path / "3" / kind / "a.png").read_bytes()


def test_the_frames_of_a_video_are_counted_in_windows_too(sliding_bundle, tmp_path, monkeypatch) -> None:
    clip, made = tmp_path / "clip.mp4", []
    random = np.random.default_rng(0)
    with open_video_writer(clip, size=(96, 128), rate=Fraction(25)) as writer:
        for number in range(3):
            writer.write(random.integers(0, 256, (96, 128, 3), dtype=np.uint8), Fraction(number, 25))
    monkeypatch.setattr(auto, "workers_for", lambda *a, **k: made.append((k, workers_for(*a, **k))) or made[-1][1])
    words = ["run", str(clip), "--bundle", str(sliding_bundle), "--engine", "onnxruntime", "--threads", "2"]
    assert _run(_application(), [*words, "-o", str(tmp_path / "out")]) == 0
    assert made[0] == ({"images": None, "windows": 9, "threads": 2}, Workers(1, 2, 1))
    assert json.loads((tmp_path / "out/summary.json").read_text())["windows"]["mean"] == 9.0
