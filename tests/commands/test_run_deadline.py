"""`dovit run --deadline-ms` through the command line in this process, on a machine whose latency model is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.cli import _application, _run
from dovit_deploy.commands import console
from dovit_deploy.runtime import latencies
from dovit_deploy.runtime.latencies import LatencyCache, timed_as
from dovit_deploy.runtime.latency import StageTime
from dovit_deploy.runtime.session import Session
from tests.runtime.test_deadline import LEAST, MODEL
from tests.runtime.test_latency import model_of


@pytest.fixture
def images(tmp_path: Path, tiny_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Session(tiny_bundle_path, threads=1) as session:
        LatencyCache().remember(timed_as(session), MODEL)
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(4)
    for number in range(4):
        Image.fromarray(draw.integers(0, 256, (56, 72, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def run(source: Path, bundle: Path, out: str, *more: object) -> tuple[int, Path]:
    words = ["run", source, "--bundle", bundle, "--save", "masks", "-o", source.parent / out, *more]
    if "--engine" not in more:
        words += ["--engine", "onnxruntime"]
    if "--threads" not in more:
        words += ["--threads", 1]
    return _run(_application(), [str(word) for word in words]), source.parent / out


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


def test_rows_and_summary_say_what_was_cut(images: Path, tiny_bundle_path: Path, capfd) -> None:
    code, folder = run(images, tiny_bundle_path, "out", "--threshold", 1, "--deadline-ms", 30)
    assert code == 0
    assert [row["tokens"]["kept"] for row in rows_of(folder)] == [[21, 12, 10]] * 4
    assert [row["capped"] for row in rows_of(folder)] == [11] * 4
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["deadline"] == {
        "ms": 30.0,
        "least_ms": pytest.approx(LEAST),
        "clock": "cpu",
        "model_error": 0.0,
        "capped_frames": 4,
        "capped_tokens": 44,
        "late_frames": 0,
    }
    printed = capfd.readouterr()
    assert "deadline 30 ms of the model step: stopped 11 tokens more in 4 of 4 images, the surest first" in printed.out
    assert "latency model of 2026-11-30" in printed.err


def test_a_long_deadline_and_none_write_the_same(images: Path, tiny_bundle_path: Path, capfd) -> None:
    _, without = run(images, tiny_bundle_path, "without")
    code, long = run(images, tiny_bundle_path, "long", "--deadline-ms", 1000)
    assert code == 0
    for mask in sorted((without / "masks").iterdir()):
        assert mask.read_bytes() == (long / "masks" / mask.name).read_bytes()
    assert not any("capped" in row for row in (*rows_of(without), *rows_of(long)))
    assert json.loads((without / "summary.json").read_text())["deadline"] is None
    assert "deadline 1000 ms of the model step: no token was stopped for it" in capfd.readouterr().out


def test_images_side_by_side_are_capped_alike(images: Path, tiny_bundle_path: Path) -> None:
    _, one = run(images, tiny_bundle_path, "one", "--deadline-ms", 12)
    code, two = run(images, tiny_bundle_path, "two", "--deadline-ms", 12, "--threads", 2)
    assert code == 0
    assert [row["capped"] for row in rows_of(one)] == [row["capped"] for row in rows_of(two)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--deadline-ms", 9), "onnxruntime fp32 takes 9.5 ms here even if every token stops at the first gate"),
        (("--deadline-ms", 0), "--deadline-ms 0: a finite number of milliseconds above 0 is needed"),
        (("--deadline-ms", "nan"), "--deadline-ms nan: a finite number of milliseconds above 0 is needed"),
        (("--deadline-ms", "inf"), "--deadline-ms inf: a finite number of milliseconds above 0 is needed"),
        (("--deadline-ms", 9), "latency model of 2026-11-30; measured anew by dovit bench"),
        (("--deadline-ms", 30, "--dense"), "--dense stops nothing, so --deadline-ms cannot be kept"),
    ],
)
def test_deadlines_that_cannot_be_kept(images: Path, tiny_bundle_path: Path, flags, words: str, capfd) -> None:
    code, folder = run(images, tiny_bundle_path, "out", *flags)
    assert code == 2
    assert words in capfd.readouterr().err
    assert not folder.exists()


def test_images_with_too_many_windows_are_counted(
    images: Path, setr_bundle_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = Bundle.open(setr_bundle_path).manifest.spec.size
    model = model_of(StageTime(constant=1, linear=0, quadratic=0), StageTime(constant=0, linear=1, quadratic=0))
    with Session(setr_bundle_path, threads=1) as session:
        LatencyCache().remember(timed_as(session), model)
    for number in range(4):
        # The last two are wide: windows slide over them.
        pixels = np.zeros((height, width + (number > 1) * 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    monkeypatch.setattr(latencies, "run_every_size", lambda session, most, advance: None)
    code, folder = run(images, setr_bundle_path, "out", "--deadline-ms", 4)
    assert code == 0
    assert [row["windows"] > 2 for row in rows_of(folder)] == [False, False, True, True]
    assert json.loads((folder / "summary.json").read_text())["deadline"]["late_frames"] == 2
    assert "of 4 images, the surest first; too short for the windows of 2" in capfd.readouterr().out


def test_without_threads_the_model_is_that_of_all_cores(images: Path, tiny_bundle_path: Path, capfd) -> None:
    """Which `bench --threads N` makes; an engine left to itself might take another number."""
    cores = latencies.this_machine().cores
    with Session(tiny_bundle_path, threads=cores) as session:
        LatencyCache().remember(timed_as(session), MODEL)
    words = ["run", images / "0.png", "--bundle", tiny_bundle_path, "--engine", "onnxruntime", "--save", "masks"]
    words += ["-o", images.parent / "out", "--deadline-ms", 1000]
    assert _run(_application(), [str(word) for word in words]) == 0
    printed = capfd.readouterr()
    assert "latency model of 2026-11-30" in printed.err and "is measured" not in printed.err
    # What ran is what the next command measures.
    assert f"--threads {cores}" in printed.err or cores == 1


def test_fixed_token_counts_have_nothing_to_stop(images: Path, classifier_bundle_path: Path, capfd) -> None:
    words = ["run", images, "--bundle", classifier_bundle_path, "--deadline-ms", 30, "-o", images.parent / "out"]
    assert _run(_application(), [str(word) for word in words]) == 2
    assert "is a model without gates" in capfd.readouterr().err


@pytest.mark.slow
def test_without_a_model_a_short_one_is_measured_and_kept(
    images: Path, tiny_bundle_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "SHORT_SECONDS", 0)
    cache = LatencyCache()
    cache.forget(cache.entries())
    # On a slow machine, or for a large model, it takes minutes: the run is not stuck.
    monkeypatch.setattr(console, "LINE_EVERY_S", 0)
    assert run(images, tiny_bundle_path, "out", "--deadline-ms", 1000, "--engine", "auto")[0] == 0
    error = capfd.readouterr().err
    assert "no latency model of onnxruntime fp32 on 1 thread yet: a short one is measured" in error
    assert "getting ready for the deadline  3 steps" in error
    (entry,) = cache.entries()
    assert (entry.found.engine, entry.found.bundle) == ("onnxruntime", Bundle.open(tiny_bundle_path).path.name)
