"""`dovit run --every N --hold` and `--warp`: all frames are there, some with the answer of another."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime.between import Motion
from dovit_deploy.runtime.latencies import LatencyCache, timed_as
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from tests.commands.test_run_stills import asked, clip, lossless_clip  # noqa: F401
from tests.runtime.test_between import texture
from tests.runtime.test_deadline import MODEL

FRAMES = 8


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """A lossless clip that moves by six pixels a frame."""
    rgb = texture(56, 72)
    return lossless_clip(tmp_path / "moving.mkv", [np.roll(rgb, 6 * number, axis=1) for number in range(FRAMES)])


def call(video: Path, bundle: Path, out: Path, *more: object) -> int:
    words = ["run", video, "--bundle", bundle, "-o", out, "--engine", "onnxruntime", "--threads", 1, *more]
    return _run(_application(), [str(word) for word in words])


def run(video: Path, bundle: Path, out: Path, *more: object) -> tuple[list[dict], dict]:
    assert call(video, bundle, out, "--save", "masks,overlay,tokens", *more) == 0
    rows = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    return rows, json.loads((out / "summary.json").read_text())


def masks(out: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((out / "masks").iterdir())]


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_held_answers(moving, tiny_bundle_path, tmp_path, asked, capfd):  # noqa: F811
    plain, _ = run(moving, tiny_bundle_path, tmp_path / "plain")
    capfd.readouterr()
    asked.clear()
    rows, summary = run(moving, tiny_bundle_path, tmp_path / "out", "--every", 3, "--hold")
    assert len(asked) == 3
    assert [row.get("filled") for row in rows] == [None, "hold", "hold"] * 2 + [None, "hold"]
    for name in ("index", "time_s", "source", "windows"):
        assert [row[name] for row in rows] == [row[name] for row in plain]
    for row in rows:
        did, latency = "filled" not in row, row["latency_ms"]
        assert (row["gmacs"]["actual"] > 0) == (latency["model"] > 0) == (latency["preprocess"] > 0) == did
        assert row["flops_saved"] == (pytest.approx(1 - row["gmacs"]["actual"] / row["gmacs"]["dense"]))
    own, got = masks(tmp_path / "plain"), masks(tmp_path / "out")
    assert len(got) == FRAMES and any((own[number] != own[number - 1]).any() for number in (1, 2))
    for number, mask in enumerate(got):
        np.testing.assert_array_equal(mask, own[number - number % 3])
    for name in ("overlay.mp4", "tokens.mp4"):
        assert times(tmp_path / "out" / name) == times(tmp_path / "plain" / name) and len(times(moving)) == FRAMES
    filled = summary["filled"]
    assert (summary["frames"], filled["every"], filled["by"], filled["frames"]) == (FRAMES, 3, "hold", 5)
    ran = [row["latency_ms"]["model"] for row in rows if "filled" not in row]
    assert filled["model_ms"]["p50"] == pytest.approx(np.median(ran))
    assert "5 frames took the answer of the last one that ran; model step of those that ran" in capfd.readouterr().out


def test_moved_answers(moving, tiny_bundle_path, tmp_path, capfd):
    rows, summary = run(moving, tiny_bundle_path, tmp_path / "out", "--every", 4, "--warp", "--max-frames", 7)
    assert [row.get("filled") for row in rows] == [None, "warp", "warp", "warp", None, "warp", "warp"]
    assert summary["filled"]["by"] == "warp" and summary["filled"]["frames"] == 5
    assert all((row["latency_ms"]["postprocess"] > 0) and row["gmacs"]["actual"] == 0 for row in rows[1:4])
    assert "took the answer of the last one that ran, moved along with the image" in capfd.readouterr().out
    with av.open(str(moving)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Session(tiny_bundle_path, threads=1) as session:
        motion = None
        for number, mask in enumerate(masks(tmp_path / "out")):
            if motion is None or number % 4 == 0:
                motion = Motion(frames[number], mask)
                np.testing.assert_array_equal(mask, Predictor(session).predict(frames[number]).class_map)
            else:
                np.testing.assert_array_equal(mask, motion.follow(frames[number]))


def test_a_clip_that_is_paused_between_does_not_keep_what_was_filled_in(clip, tiny_bundle_path, tmp_path, asked):  # noqa: F811
    rows, summary = run(clip, tiny_bundle_path, tmp_path / "out", "--every", 2, "--hold")
    how = [row.get("filled") or row.get("still", False) for row in rows]
    # Shown are 0, 0, 0, 1, 1, 0: the second image first comes where nothing runs, and again where it is its turn.
    assert how == [False, True, True, "hold", False, "hold"]
    assert len(asked) == 2 and (summary["still"], summary["filled"]["frames"]) == (2, 2)


def test_what_is_held_is_audited(moving, tiny_bundle_path, tmp_path):
    flags = ("--threshold", 1)
    rows, summary = run(moving, tiny_bundle_path, tmp_path / "out", "--every", 4, "--hold", "--audit", 1, *flags)
    run(moving, tiny_bundle_path, tmp_path / "dense", "--dense")
    for row, held, dense in zip(rows, masks(tmp_path / "out"), masks(tmp_path / "dense"), strict=True):
        assert row["audit"]["differing"] == pytest.approx(np.mean(held != dense))
    assert summary["audit"]["frames"] == FRAMES and rows[1]["audit"]["differing"] > rows[0]["audit"]["differing"]


def test_a_deadline_is_that_of_frames_that_run(moving, tiny_bundle_path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Session(tiny_bundle_path, threads=1) as session:
        LatencyCache().remember(timed_as(session), MODEL)
    flags = ("--every", 3, "--warp", "--threshold", 1, "--deadline-ms", 30)
    rows, summary = run(moving, tiny_bundle_path, tmp_path / "out", *flags)
    assert ["capped" in row for row in rows] == ["filled" not in row for row in rows]
    assert (summary["deadline"]["capped_frames"], summary["filled"]["frames"]) == (3, 5)


def test_windows_slide_over_frames_that_run(setr_bundle_path, tmp_path, asked):  # noqa: F811
    rgb = texture(80, 100)
    large = lossless_clip(tmp_path / "large.mkv", [np.roll(rgb, 6 * number, axis=1) for number in range(FRAMES)])
    rows, _ = run(large, setr_bundle_path, tmp_path / "out", "--every", 4, "--hold", "--start", "0.08")
    windows = rows[0]["windows"]
    assert [row["windows"] for row in rows] == [windows] * 6 and windows > 1 and len(asked) == 2 * windows
    # The span begins with a frame that runs, whatever its number.
    assert [(row["index"], row.get("filled")) for row in rows[:5]] == [
        *((2, None), (3, "hold"), (4, "hold"), (5, "hold"), (6, None))
    ]


def test_the_report_says_which_frames_ran(moving, tiny_bundle_path, tmp_path):
    assert call(moving, tiny_bundle_path, tmp_path / "out", "--every", 4, "--warp") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "frames ran" in page and "one of 4; of the others 6 frames answer moved along" in page
    assert "frame 1 at 0.04 s, answer moved along" in page and "frame 4 at 0.16 s, " not in page
    assert "did not run, answer moved along" in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--hold",), "--hold is for the frames between those that run; give --every N of 2 or more, too"),
        (("--warp", "--every", 1), "--warp is for the frames between those that run"),
        (
            ("--hold", "--warp", "--every", 2),
            "--hold keeps an answer where it is and --warp moves it",
        ),
        (("--hold", "--every", 2, "--audit", 2, "--on-drift", "dense"), "--on-drift can only warn then"),
    ],
)
def test_flags_that_contradict_are_refused(flags, words, moving, tiny_bundle_path, tmp_path, capfd):
    assert call(moving, tiny_bundle_path, tmp_path / "out", *flags) == 2
    assert words in capfd.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--hold", "--warp"])
def test_images_are_refused(flag, tiny_bundle_path, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (72, 56)).save(tmp_path / "in" / f"{name}.png")
    assert call(tmp_path / "in", tiny_bundle_path, tmp_path / "out", "--every", 2, flag) == 2
    assert f"{flag} goes on from one frame of a video to the next, and these are images" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
