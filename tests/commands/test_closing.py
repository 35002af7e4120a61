"""How a run ends: what came out, what was gained, where to look; and the images that it leaves."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from dovit_deploy import Bundle, Predictor, Session
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands.closing import (
    NOT_COMPARED,
    bench_command,
    duration,
    gain_lines,
    keeping_up_lines,
    speed_lines,
)
from dovit_deploy.runtime.between import Between
from tests.sources.clips import make_clip, numbered


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the command line, with an image, a folder of two and a video."""
    monkeypatch.chdir(tmp_path)
    Path("two").mkdir()
    for name in ("one.png", "two/a.png", "two/b.png"):
        Image.fromarray(numbered(3, height=120, width=200)).save(name)
    make_clip(Path("clip.mp4"), count=5, size=(120, 200))
    return tmp_path


@pytest.fixture
def run(tiny_bundle_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    def called(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        given = ["run", *map(str, arguments), "--bundle", str(tiny_bundle_path)]
        assert _run(_application(), given) == code
        done = capsys.readouterr()
        return done.out, done.err

    return called


def figures(frames: int, *, dense: bool = False, stills: int = 0) -> dict[str, object]:
    """A summary as `run` writes it."""
    column = {"mean": 2.0, "p50": 3.0, "p90": 4.0, "p99": 5.0}
    parts = ("decode", "preprocess", "model", "postprocess", "total")
    return {
        "frames": frames,
        "engine": "onnxruntime",
        "precision": "fp32",
        "dense": dense,
        "deadline": None,
        "audit": None,
        "filled": None,
        "compiling": None,
        "latency_ms": dict.fromkeys(parts, column),
        "tokens": {"kept": [column, column]},
        "gmacs": {"dense": {**column, "mean": 4.0}, "actual": column},
        "flops_saved": {**column, "mean": 0.5},
        "still": stills,
    }


def test_one_image_has_a_latency_and_nothing_else():
    (line,) = speed_lines(figures(1), noun="image", seconds=1.0)
    assert line == "1 image, onnxruntime fp32: 3.0 ms (decode 3.0, preprocess 3.0, model 3.0, postprocess 3.0)"


def test_several_have_a_rate_and_many_a_99th_percentile():
    first, second = speed_lines(figures(99), noun="frame", seconds=4.0)
    assert first == "99 frames in 4.0 s, onnxruntime fp32: 24.8 frames per second"
    assert "latency per frame (ms): 3.0 median; decode" in second and "p99" not in second
    assert "3.0 median, 5.0 p99; decode" in speed_lines(figures(100), noun="image", seconds=4.0)[1]


@pytest.mark.parametrize(
    ("model_ms", "every", "words"),
    [
        (33.0, 1, ""),
        (35.0, 1, "frames come every 40 ms, and one takes 41 without reading: --every 2 --warp would keep up"),
        (82.0, 1, "frames come every 40 ms, and one takes 88 without reading: --every 3 --warp would keep up"),
        (82.0, 3, ""),
        # Three frames' time is 120 ms, of which the two that do not run take 16.
        (99.0, 1, "frames come every 40 ms, and one takes 105 without reading: --every 4 --warp would keep up"),
        (124.0, 3, "frames come every 120 ms, and one takes 130 without reading: --every 4 --warp would keep up"),
        (258.0, 1, "frames come every 40 ms, and one takes 264 without reading: --every 8 --warp would keep up"),
        (259.0, 1, ""),
    ],
)
def test_of_a_video_that_is_faster_than_the_model_a_line_says_what_keeps_up(model_ms, every, words):
    video = SimpleNamespace(video=SimpleNamespace(rate=Fraction(25), size=(1000, 1000)))
    images, plain = SimpleNamespace(video=None), SimpleNamespace(every=every, between=None)
    parts = {"decode": 9.0, "preprocess": 2.0, "model": model_ms, "postprocess": 4.0}
    summary = {**figures(9), "latency_ms": {name: {"p50": part} for name, part in parts.items()}}
    assert keeping_up_lines(summary, plain, video, task="segmentation") == ([words] if words else [])
    assert keeping_up_lines(summary, plain, video, task="classification") == []
    assert keeping_up_lines(summary, plain, images, task="segmentation") == []
    warped = SimpleNamespace(every=1, between=Between(2, "warp"))
    assert keeping_up_lines(summary, warped, video, task="segmentation") == []
    # Frames that take as long to be moved as to come are too large for it.
    large = SimpleNamespace(video=SimpleNamespace(rate=Fraction(25), size=(2000, 2500)))
    assert keeping_up_lines(summary, plain, large, task="segmentation") == []


def test_what_was_gained_and_whether_that_is_known():
    first, second = gain_lines(figures(2), noun="frame", has_dense=True)
    assert first == "FLOPs saved: 50.0% (2.00 of 4.00 GMACs); tokens per stage: 2 -> 2" and second == NOT_COMPARED
    assert gain_lines(figures(2), noun="frame", has_dense=False) == [first]
    lines = gain_lines(figures(30, stills=11), noun="frame", has_dense=True)
    assert lines[1] == "11 frames repeated the one before, bit for bit, and took its answer"
    assert gain_lines(figures(2, dense=True), noun="frame", has_dense=True)[1] == "nothing was stopped (--dense)"
    cold = {"frames": 3, "model_ms": {"cold": {"p99": 212.04}, "warm": {"p99": 40.0}}}
    line = "something was compiled during 3 frames: model p99 of these 212.0 ms, of the others 40.0"
    assert gain_lines(figures(9) | {"compiling": cold}, noun="frame", has_dense=True)[1] == line
    cold["model_ms"]["warm"] = None
    assert gain_lines(figures(9) | {"compiling": cold}, noun="frame", has_dense=True)[1] == line.split(",")[0]
    unsaved = figures(2) | {"flops_saved": {"mean": -1e-6}}
    assert gain_lines(unsaved, noun="frame", has_dense=True)[0].startswith("FLOPs saved: 0.0% (")


def test_durations():
    assert [duration(value) for value in (0.04, 59.94, 60, 200.4)] == ["0.0 s", "59.9 s", "1 min 0 s", "3 min 20 s"]


def test_the_command_that_measures_the_speed():
    given = Path("my model.dovit")
    assert bench_command(given, "a b", recursive=True, engine="torch", precision="fp32") == (
        "dovit bench 'my model.dovit' --frames 'a b' --recursive --engine torch --precision fp32"
    )
    alone = {"recursive": False, "engine": "onnxruntime", "precision": None}
    assert bench_command(given, "a", **alone, threads=2).endswith("--frames a --threads 2")
    # What `bench` takes by itself, and what nobody gave.
    assert bench_command(given, "a", **alone, threads=1) == bench_command(given, "a", **alone)
    for source in ("0", "rtsp://user:secret@host/a"):
        assert bench_command(None, source, **alone) == "dovit bench"


def test_one_image_ends_with_its_files(run):
    out, err = run("one.png")
    lines = out.splitlines()
    assert lines[0].startswith("1 image, onnxruntime fp32: ") and lines[-2] == NOT_COMPARED
    assert lines[-1] == "runs/one: overlay/one.png, masks/one.png, report.html, frames.jsonl, summary.json"
    assert err.splitlines()[-1].endswith(" --frames one.png")


def test_images_and_videos_end_with_a_rate(run):
    out, _ = run("two")
    assert out.startswith("2 images in ") and " images per second" in out
    assert "runs/two: overlay/, masks/, report.html, frames.jsonl, summary.json" in out
    out, _ = run("clip.mp4", "--save", "overlay,tokens,masks", "--dense")
    assert out.startswith("5 frames in ") and "nothing was stopped (--dense)" in out
    assert "runs/clip: overlay.mp4, masks/, tokens.mp4, frames.jsonl, summary.json" in out


def test_overwrite_without_a_folder_replaces_the_default_one(run, folder):
    run("one.png")
    run("one.png")
    first = (folder / "runs/one/summary.json").stat().st_ino
    out, _ = run("one.png", "--overwrite")
    assert "runs/one: " in out
    assert {path.name for path in (folder / "runs").iterdir()} == {"one", "one-2"}
    assert (folder / "runs/one/summary.json").stat().st_ino != first
    out, _ = run("two", "--overwrite")
    assert "runs/two: " in out


def test_a_default_folder_that_is_not_ours_is_not_replaced(run, folder):
    (folder / "runs/one").mkdir(parents=True)
    (folder / "runs/one/notes.txt").write_text("mine")
    _, err = run("one.png", "--overwrite", code=2)
    assert "runs/one is not replaced" in err
    assert [path.name for path in (folder / "runs").rglob("*")] == ["one", "notes.txt"]
    assert "runs/one-2: " in run("one.png")[0]


# What is lettered on the images.


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


def frames(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    read = []
    while (found := video.read())[0]:
        read.append(found[1])
    video.release()
    return read


def test_overlays_of_images_carry_legend_and_figures_unless_they_are_not_wanted(run, folder, tiny_bundle_path):
    for name, more in (("with", ()), ("without", ("--no-legend",))):
        run("two", "-o", name, "--save", "overlay,masks,tokens", *more)
    with Session(Bundle.open(tiny_bundle_path)) as session:
        result = Predictor(session).predict(pixels(folder / "two/a.png"))
    np.testing.assert_array_equal(pixels(folder / "without/overlay/a.png"), result.plot())
    np.testing.assert_array_equal(pixels(folder / "without/tokens/a.png"), result.plot_tokens(legend=False))
    np.testing.assert_array_equal(pixels(folder / "with/tokens/a.png"), result.plot_tokens())
    changed = (pixels(folder / "with/overlay/a.png") != result.plot()).any(axis=2)
    assert changed.shape == (120, 200)
    assert changed[:40, :100].any(), "figures"
    assert changed[60:, :100].any(), "legend"
    for path in ("masks/a.png", "masks/b.png"):
        assert (folder / "with" / path).read_bytes() == (folder / "without" / path).read_bytes()
    rows = [json.loads(line) for line in (folder / "with/frames.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [
        {"index", "source", "time_s", "windows", "latency_ms", "tokens", "gmacs", "flops_saved"}
    ] * 2


def test_videos_carry_the_same(run, folder):
    for name, more in (("with", ()), ("without", ("--no-legend",))):
        run("clip.mp4", "-o", name, "--save", "overlay,tokens", *more)
    lettered, plain = frames(folder / "with/overlay.mp4"), frames(folder / "without/overlay.mp4")
    assert len(lettered) == len(plain) == 5 and lettered[0].shape == plain[0].shape == (120, 200, 3)
    for first, second in zip(lettered, plain, strict=True):
        # The figures are at the upper left and the legend at the lower left; compression blurs what is beside them.
        difference = np.abs(first.astype(int) - second).max(axis=2) > 60
        assert difference[:40, :100].any() and difference[60:, :100].any() and not difference[:, 170:].any()
    keys = {frame.shape for frame in frames(folder / "with/tokens.mp4")}
    assert len(keys) == 1 and keys.pop()[0] > 120
    assert frames(folder / "without/tokens.mp4")[0].shape == (120, 200, 3)


def test_one_image_shows_its_latency_and_several_their_rate(run, monkeypatch):
    from dovit_deploy.runtime import outputs

    speeds = []
    monkeypatch.setattr(outputs, "draw_figures", lambda rgb, tokens, speed: speeds.append(speed))
    run("one.png")
    run("two")
    run("clip.mp4", "--max-frames", 2)
    assert [text.split()[1] for text in speeds] == ["ms", "fps", "fps", "fps", "fps"]
