"""Several sources: a folder each, figures and a page of all, and whatever a user may give wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dovit_deploy.batch.archive import ARCHIVE_FILES
from dovit_deploy.batch.listing import stems_of, texts_from
from dovit_deploy.batch.on_ray import refuse_silent
from dovit_deploy.batch.rows import Selected, source_from_text
from dovit_deploy.errors import EnvironmentProblem, SourceError, UsageError
from tests.batch.conftest import InProcess, assert_like_run, dovit, write_clip, write_images


def test_several_sources_of_which_one_cannot_be_read(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    videos = tmp_path / "videos"
    videos.mkdir()
    write_clip(videos / "a.mp4", 14)
    write_clip(videos / "b.mp4", 8, seed=1)
    (videos / "c.mp4").write_bytes(b"no video")
    folder = write_images(tmp_path / "photos", 3)
    out = tmp_path / "out"
    words = (videos, folder, "-o", out, "--segment-seconds", "0.5", "--json", tmp_path / "all.json")
    assert dovit("batch", tiny_bundle_path, *words) == 7
    said = capfd.readouterr()
    assert "1 source could not be read" in said.err and "3 sources, 25 frames" in said.out
    for name, source in (("a", videos / "a.mp4"), ("b", videos / "b.mp4"), ("photos", folder)):
        assert dovit("run", tiny_bundle_path, source, "-o", tmp_path / "runs" / name) == 0
        assert_like_run(out / name, tmp_path / "runs" / name)
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary == json.loads((tmp_path / "all.json").read_bytes())
    assert [clip["clip"] for clip in summary["clips"]] == ["a", "b", "photos"] and summary["mixed"] == []
    assert summary["failed"][0]["source"] == str(videos / "c.mp4")
    table = parquet.read_table(out / "frames.parquet").to_pylist()
    rows = [json.loads(line) for name in ("a", "b", "photos") for line in (out / name / "frames.jsonl").open()]
    assert [(row["source"], row["index"]) for row in table] == [(row["source"], row["index"]) for row in rows]
    for mine, row in zip(table, rows, strict=True):
        assert mine["tokens_kept"] == row["tokens"]["kept"] and mine["gmacs_actual"] == row["gmacs"]["actual"]
        assert mine["total_ms"] == pytest.approx(row["latency_ms"]["total"])
        assert sum(dict(mine["class_shares"]).values()) == pytest.approx(1)
    page = (out / "report.html").read_text()
    assert "Hardest clips" in page and "c.mp4" in page
    # Only what this verb wrote is replaced.
    (out / "notes.txt").write_text("mine")
    assert dovit("batch", tiny_bundle_path, *words, "--overwrite") == 2 and (out / "notes.txt").exists()
    (out / "notes.txt").unlink()
    assert dovit("batch", tiny_bundle_path, *words, "--overwrite") == 7
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out"]


def test_one_of_two_that_can_be_read(cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos" / "a.mp4", 6)
    (tmp_path / "videos" / "b.mp4").write_bytes(b"no video")
    assert dovit("batch", tiny_bundle_path, tmp_path / "videos", "-o", tmp_path / "out") == 7
    assert (tmp_path / "out" / "a" / "frames.jsonl").is_file() and (tmp_path / "out" / "frames.parquet").is_file()


def test_nothing_that_can_be_read(cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert dovit("batch", tiny_bundle_path, tmp_path / "a.mp4", "-o", tmp_path / "out") == 3
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.batch").exists()


def test_what_a_batch_refuses(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip, out = write_clip(tmp_path / "clip.mp4", 6), tmp_path / "out"
    for words, code, message in (
        ((clip, "-o", out, "--segment-seconds", "0.01"), 2, "shorter than a frame"),
        ((clip, "-o", out, "--segment-seconds", "nan"), 2, "above 0"),
        ((clip, "-o", tmp_path), 2, "holds the input"),
        (("http://127.0.0.1:9/a.mp4", "-o", out), 3, "does not open"),
        ((tmp_path / "missing", "-o", out), 3, "no such file"),
    ):
        assert dovit("batch", tiny_bundle_path, *words) == code, words
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error
        assert not out.exists() and not (tmp_path / "out.batch").exists()


def test_two_batches_into_one_folder(cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6)
    holder = (
        "import sys, time; from pathlib import Path; from dovit_deploy.claims import claimed\n"
        f"with claimed(Path({str(tmp_path / 'out')!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert dovit("batch", tiny_bundle_path, clip, "-o", tmp_path / "out") == 2
        assert other.stdin is not None
        other.stdin.close()


def test_without_ray(tiny_bundle_path: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "ray.py").write_text("raise ImportError('blocked for a test')\n")
    path = os.pathsep.join([str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")])
    words = ["-m", "dovit_deploy", "batch", str(clip), "-o", str(tmp_path / "out"), "--bundle", str(tiny_bundle_path)]
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5 and "dovit-deploy[ray]" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_address_that_does_not_answer() -> None:
    with pytest.raises(EnvironmentProblem, match="no Ray answers there"):
        refuse_silent("127.0.0.1:9")
    with pytest.raises(UsageError, match="HOST:PORT"):
        refuse_silent("nowhere")


def test_what_sources_mean(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    for name in ("b.mp4", "a.mov", ".hidden.mp4"):
        (tmp_path / "photos" / name).write_bytes(b"")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two\n{tmp_path}/photos/b.mp4\n\n{tmp_path}/photos/*.mov\n")
    photos = str(tmp_path / "photos")
    assert texts_from([photos], recursive=False) == (photos, f"{photos}/a.mov", f"{photos}/b.mp4")
    assert texts_from([str(listed)], recursive=False) == (f"{photos}/b.mp4", f"{photos}/a.mov")
    assert texts_from([f"{photos}/*.png", f"{photos}/*.m*"], recursive=False) == (
        *(f"{photos}/*.png", f"{photos}/a.mov", f"{photos}/b.mp4"),
    )
    listed.write_text("\n")
    with pytest.raises(SourceError, match="names no source"):
        texts_from([str(listed)], recursive=False)


def test_a_parquet_list(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    parquet.write_table(arrow.table({"id": [1, 2], "path": ["a.mp4", "b.mp4"]}), path)
    assert texts_from([str(path)], recursive=False) == ("a.mp4", "b.mp4")
    parquet.write_table(arrow.table({"id": [1, 2], "other": ["a", "b"]}), path)
    with pytest.raises(SourceError, match="which column"):
        texts_from([str(path)], recursive=False)


def test_names_of_results_do_not_meet() -> None:
    texts = ("x/a.mp4", "y/a.mp4", "z/a.mov", "photos/", "w/a.mp4")
    names = stems_of(texts)
    assert len(set(names.values())) == len(texts) and names["photos/"] == "photos"
    assert stems_of(("x/summary.json.mp4", "y.mp4"), reserved=ARCHIVE_FILES) == {
        "x/summary.json.mp4": "summary.json-2",
        "y.mp4": "y",
    }


def test_names_of_thousands_that_are_called_alike() -> None:
    texts = [f"camera{number}/000001.mp4" for number in range(4000)]
    began = time.process_time()
    assert len(set(stems_of(texts).values())) == 4000
    # Trying every number for each of them took 25 s.
    assert time.process_time() - began < 5


def test_names_that_no_table_holds_and_names_of_what_lies_beside(
    cluster: InProcess, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    videos, photos = tmp_path / "videos", write_images(tmp_path / "photos", 2)
    videos.mkdir()
    for name in ("frames.parquet.mp4", os.fsdecode(b"bad\xff.mp4")):
        write_clip(videos / name, 2)
    (photos / "000.png").rename(photos / os.fsdecode(b"\xfe.png"))
    assert dovit("batch", tiny_bundle_path, videos, photos, "-o", tmp_path / "out") == 7
    said = capfd.readouterr().err
    assert said.count("no UTF-8 text") == 2 and "2 sources could not be read" in said
    assert (tmp_path / "out" / "frames.parquet-2" / "frames.jsonl").is_file()
    assert (tmp_path / "out" / "frames.parquet").is_file()


def test_segments_hold_every_frame_once(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 23)
    for every, seconds in ((1, 0.3), (2, 0.7), (5, 1.0)):
        selected = Selected(every=every, max_pixels=10**6)
        source = source_from_text(0, str(clip), "clip", selected, seconds=seconds)
        segments = [row.segment for row in source.rows if row.segment is not None]
        taken = [index for one in segments for index in range(one.first, one.last + 1, one.every)]
        assert taken == list(range(0, 23, every)) and source.frames == len(taken)
        assert [one.before is None for one in segments] == [True] + [False] * (len(segments) - 1)
