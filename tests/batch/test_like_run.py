"""What `dovit batch` leaves of a source is what `dovit run` leaves of it, byte for byte but for times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.batch import rows as rows_module
from tests.batch.conftest import InProcess, assert_like_run, dovit, write_clip, write_images

KINDS = "masks,overlay,tokens,coco"


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--every", "3"),
        ("--start", "0.45", "--end", "1.95"),
        ("--max-frames", "13", "--every", "2"),
        ("--audit", "3", "--threshold", "0.4"),
    ],
    ids=" ".join,
)
def test_a_video_in_segments(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 26)
    out, run = tmp_path / "out", tmp_path / "run"
    words = (clip, "--save", KINDS, "--no-legend", *flags)
    assert dovit("batch", tiny_bundle_path, *words, "-o", out, "--segment-seconds", "0.5") == 0
    assert dovit("run", tiny_bundle_path, *words, "-o", run) == 0
    # Cut, and not computed as a whole because the cuts did not fit.
    assert len(cluster.computed) > 2 and "000000-whole" not in cluster.computed
    assert_like_run(out, run)
    # Without the lettered speed the overlay is the same, too.
    assert (out / "overlay.mp4").read_bytes() == (run / "overlay.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out", "run"]


def test_a_frame_that_repeats_the_last_one_of_the_segment_before(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 16, codec="ffv1")
    # Cut between two frames that stand still.
    assert dovit("batch", tiny_bundle_path, clip, "-o", tmp_path / "out", "--segment-seconds", "1") == 0
    assert dovit("run", tiny_bundle_path, clip, "-o", tmp_path / "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").open()]
    assert [row["index"] for row in rows if row.get("still")] == [9, 10, 11] and len(cluster.computed) == 2
    assert_like_run(tmp_path / "out", tmp_path / "run")


def test_a_folder_in_chunks_with_an_image_that_cannot_be_read(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "IMAGES_A_ROW", 3)
    folder = write_images(tmp_path / "images", 7)
    (folder / "004.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(folder / "000.jpg")
    words = (folder, "--save", "masks,overlay,coco,report")
    assert dovit("batch", tiny_bundle_path, *words, "-o", tmp_path / "out") == 7
    assert dovit("run", tiny_bundle_path, *words, "-o", tmp_path / "run") == 7
    assert cluster.computed == ["000000-000000", "000000-000001", "000000-000002"]
    assert_like_run(tmp_path / "out", tmp_path / "run")
    assert len(json.loads((tmp_path / "out" / "summary.json").read_bytes())["failed"]) == 1


@pytest.mark.parametrize(("group", "whole"), [("1000", True), ("8", False)])
def test_intra_refresh(cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, group: str, whole: bool) -> None:
    """Frames that only look like key frames: decoding that begins there is wrong at first, which hashes show."""
    clip = write_clip(tmp_path / "clip.mp4", 24, g=group, **{"x264-params": "intra-refresh=1:scenecut=0"})
    assert dovit("batch", tiny_bundle_path, clip, "-o", tmp_path / "batch", "--segment-seconds", "0.5") == 0
    assert dovit("run", tiny_bundle_path, clip, "-o", tmp_path / "run") == 0
    assert cluster.computed == ["000000-whole"] if whole else "000000-whole" not in cluster.computed
    assert_like_run(tmp_path / "batch", tmp_path / "run")


def test_a_video_that_is_damaged_within_is_one_segment(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 26)
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    # What decoders cannot read, in packets whose places and times are as they were.
    content[middle : middle + 6000] = bytes(6000)
    clip.write_bytes(content)
    codes = [
        dovit("batch", tiny_bundle_path, clip, "--segment-seconds", "0.5", "-o", tmp_path / "batch"),
        dovit("run", tiny_bundle_path, clip, "-o", tmp_path / "run"),
    ]
    assert codes[0] == codes[1] and cluster.computed[-1] == "000000-whole"
    assert "computed as a whole" in capfd.readouterr().err
    assert_like_run(tmp_path / "batch", tmp_path / "run")


def test_a_classifier(cluster: InProcess, classifier_bundle_path: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    for verb in ("batch", "run"):
        assert dovit(verb, classifier_bundle_path, folder, "--save", "overlay,tokens", "-o", tmp_path / verb) == 0
    assert_like_run(tmp_path / "batch", tmp_path / "run")
