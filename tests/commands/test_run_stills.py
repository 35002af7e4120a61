"""`dovit run` on a clip that stands still: the former answer bit for bit, without the model, and the rows say so."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session

SHOWN = (0, 0, 0, 1, 1, 0)
"""Which of two images each frame of the clip shows."""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A lossless clip, so that frames which were equal still are."""
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 72, 3), dtype=np.uint8)
    return lossless_clip(tmp_path / "paused.mkv", [images[image] for image in SHOWN])


def lossless_clip(path: Path, images: list[np.ndarray]) -> Path:
    """A video of `images`, each (H, W, 3), of even sides."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def run(clip: Path, bundle: Path, out: Path, *more: str) -> list[dict]:
    words = ["run", str(clip), "--bundle", str(bundle), "-o", str(out), "--save", "masks,overlay,tokens"]
    assert _run(_application(), [*words, "--engine", "onnxruntime", "--threads", "1", *more]) == 0
    return [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every image that reaches the model."""
    calls: list[int] = []
    run_one = Session.run_one

    def counted(self, pixels, settings):
        calls.append(len(calls))
        return run_one(self, pixels, settings)

    monkeypatch.setattr(Session, "run_one", counted)
    return calls


def test_a_frame_that_repeats_takes_the_former_answer(clip, tiny_bundle_path, tmp_path, asked, capfd):
    rows = run(clip, tiny_bundle_path, tmp_path / "out")
    assert len(asked) == 3
    assert [row.get("still", False) for row in rows] == [False, True, True, False, True, False]
    assert "3 frames repeated the one before" in capfd.readouterr().out
    for former, row in itertools.pairwise(rows):
        if row.get("still", False):
            assert row["gmacs"] == {"dense": former["gmacs"]["dense"], "actual": 0.0} and row["flops_saved"] == 1.0
            assert row["tokens"] == former["tokens"] and row["windows"] == former["windows"]
            latency = row["latency_ms"]
            assert latency["model"] == latency["preprocess"] == latency["postprocess"] == 0.0
            assert latency["total"] == latency["decode"] > 0
        else:
            assert row["gmacs"]["actual"] > 0 and row["latency_ms"]["model"] > 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == 6 and summary["still"] == 3


def test_its_files_are_what_they_would_be_without(clip, tiny_bundle_path, tmp_path):
    run(clip, tiny_bundle_path, tmp_path / "out")
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Session(tiny_bundle_path, threads=1) as session:
        for number, rgb in enumerate(frames):
            mask = np.asarray(Image.open(tmp_path / f"out/masks/{number:06d}.png"))
            np.testing.assert_array_equal(mask, Predictor(session).predict(rgb).class_map)
    for name in ("overlay.mp4", "tokens.mp4"):
        with av.open(str(tmp_path / "out" / name)) as container:
            assert len(list(container.decode(video=0))) == len(SHOWN)


def test_equal_images_of_a_folder_are_each_run(clip, tiny_bundle_path, tmp_path, asked):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (72, 56), (40, 90, 20)).save(folder / f"{name}.png")
    rows = run(folder, tiny_bundle_path, tmp_path / "out")
    assert len(asked) == 2 and [row.get("still", False) for row in rows] == [False, False]


def test_every_second_frame_is_compared_with_the_one_taken_before(clip, tiny_bundle_path, tmp_path):
    rows = run(clip, tiny_bundle_path, tmp_path / "out", "--every", "2")
    assert [(row["index"], row.get("still", False)) for row in rows] == [(0, False), (2, True), (4, False)]
