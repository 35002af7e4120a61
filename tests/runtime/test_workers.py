"""How a run shares its threads: one image each, never more threads than were given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime import workers
from dovit_deploy.runtime.workers import MOST_WORKERS, Workers, workers_for


@given(st.integers(1, 64), st.integers(2, 1000), st.sampled_from(["onnxruntime", "openvino"]))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_a_folder_takes_the_threads_that_it_was_given_and_no_more(threads, images, engine):
    found = workers_for(engine, images=images, threads=threads)
    assert 1 <= found.count <= min(images, MOST_WORKERS)
    assert found.threads is not None and found.threads >= 1
    assert found.count * found.threads <= threads < found.count * (found.threads + 1)


def test_without_a_number_it_is_every_core_that_the_process_may_use(monkeypatch):
    class Machine:
        cores = 6

    monkeypatch.setattr(workers, "this_machine", Machine)
    assert workers_for("onnxruntime", images=100, threads=None) == Workers(6, 1)
    assert workers_for("onnxruntime", images=2, threads=None) == Workers(2, 3)


@pytest.mark.parametrize(("engine", "images"), [("onnxruntime", None), ("onnxruntime", 1), ("torch", 9), ("cuda", 9)])
def test_one_stream_one_image_and_other_engines_go_one_after_another(engine, images):
    assert workers_for(engine, images=images, threads=None) == Workers(1, None)
    assert workers_for(engine, images=images, threads=4) == Workers(1, 4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_folder_on_several_threads_is_what_it_is_on_one(engine, tiny_bundle_path, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
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
    assert rows[1] == rows[3] and [Path(row["source"]).stem for row in rows[3]] == list("012345678")
    for kind in ("masks", "tokens"):
        files = sorted((tmp_path / "1" / kind).iterdir())
        assert len(files) == 9
        for path in files:
            assert path.read_bytes() == (tmp_path / "3" / kind / path.name).read_bytes()
