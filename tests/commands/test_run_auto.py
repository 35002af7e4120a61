"""`dovit run` without `--engine`, on real engines, through the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime import auto
from dovit_deploy.runtime.choices import ChoiceCache


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(4)
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (56, 72, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def run(source: Path, *more: object) -> tuple[int, dict[str, object]]:
    words = ["run", source, *more, "--threads", 1, "--save", "masks", "--overwrite", "-o", source.parent / "out"]
    code = _run(_application(), [str(word) for word in words])
    summary = source.parent / "out" / "summary.json"
    return code, json.loads(summary.read_text()) if summary.is_file() else {}


def test_a_short_source_runs_in_the_standard_and_measures_nothing(images: Path, tiny_bundle_path: Path, capfd) -> None:
    code, summary = run(images, "--bundle", tiny_bundle_path)
    assert (code, summary["engine"], summary["precision"]) == (0, "onnxruntime", "fp32")
    assert (
        "engine: onnxruntime fp32; the fastest is measured on sources of 30 frames and more" in capfd.readouterr().err
    )
    assert not ChoiceCache().path.exists()


def test_a_long_one_is_measured_on_all_that_is_installed_and_remembered(
    images: Path, tiny_bundle_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEWEST_FRAMES", 3)
    monkeypatch.setattr(auto, "SHORTEST_S", 0.0)
    # Also on a busy machine all are timed.
    monkeypatch.setattr(auto, "LONGEST_S", 100.0)
    # Of so small a model any engine may be the fastest; every frame is run all the same.
    monkeypatch.setattr(auto, "_seconds_of_a_frame", lambda *given: 100.0)
    code, summary = run(images, "--bundle", tiny_bundle_path)
    assert (code, summary["frames"]) == (0, 3)
    (entry,) = ChoiceCache().entries()
    assert (summary["engine"], summary["precision"], summary["dense"]) == (
        entry.found.engine,
        entry.found.precision,
        entry.found.dense,
    )
    assert f"engine: {entry.found.name}" in capfd.readouterr().err
    monkeypatch.setattr(auto, "contest", None)
    ChoiceCache().remember(entry.situation, entry.found.model_copy(update={"pays_from": 0}))
    code, again = run(images, "--bundle", tiny_bundle_path)
    assert (code, again["engine"]) == (0, summary["engine"])
    assert "remembered from" in capfd.readouterr().err


def test_flags_that_mean_nothing_to_what_may_be_chosen(images: Path, tiny_bundle_path: Path, capfd) -> None:
    assert run(images, "--bundle", tiny_bundle_path, "--cuda-memory", "pycuda")[0] == 2
    assert "--cuda-memory means nothing to engine onnxruntime" in capfd.readouterr().err
    assert run(images, "--bundle", tiny_bundle_path, "--precision", "fp8")[0] == 2
    assert "'fp8' given; --engine auto chooses among: fp32" in capfd.readouterr().err


def test_only_run_chooses(tiny_bundle_path: Path, capfd) -> None:
    assert _run(_application(), ["bench", str(tiny_bundle_path), "--engine", "auto"]) == 2
    assert "'auto' given; allowed: onnxruntime" in capfd.readouterr().err
