"""`dovit run --audit` on a video: ten seconds are one value, repeated frames none, and each engine is its own dense."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy.betting import DriftEvidence
from dovit_deploy.cli import _application, _run

STILL = 3
"""This frame repeats the one before."""


def write_clip(path: Path, frames: int, *, rate: Fraction) -> Path:
    """Noise, lossless; with everything stopped the tiny model answers half of its pixels otherwise."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 56, 72, "yuv420p"
        image = None
        for number in range(frames):
            if number != STILL:
                image = draw.integers(0, 256, (56, 72, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def run(clip: Path, bundle: Path, out: Path, *more: object) -> tuple[dict, list[dict]]:
    words = ["run", clip, "--bundle", bundle, "-o", out, "--save", "masks", "--threads", 1, "--threshold", 0, *more]
    assert _run(_application(), [str(word) for word in words]) == 0
    rows = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    return json.loads((out / "summary.json").read_text()), rows


def mask(folder: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / f"{number:06}.png"))


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_drift_of_a_video_is_found_in_rounds_of_ten_seconds(
    engine: str, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    clip = write_clip(tmp_path / "noise.mkv", 20, rate=Fraction(1, 5))
    runs = ("--engine", engine, "--precision", "fp32")
    summary, rows = run(clip, tiny_bundle_path, tmp_path / "out", *runs, "--audit", 1, "--on-drift", "dense")
    audit = summary["audit"]
    (alarm,) = audit["alarms"]
    # Two frames are a value, which the first frame of the next two completes.
    assert alarm["frame"] % 2 == 0 and alarm["time_s"] == 5.0 * alarm["frame"]
    assert 4 <= alarm["frame"] <= 12
    assert alarm["evidence"] >= 20 and alarm["differing"] > 0.05
    bets = DriftEvidence(0.05)
    for first in range(0, alarm["frame"], 2):
        bets.add(float(np.mean([row["audit"]["differing"] for row in rows[first : first + 2] if "audit" in row])))
    assert alarm["evidence"] == pytest.approx(bets.wealth)
    shown = [row["index"] for row in rows if "audit" in row]
    assert shown == [number for number in range(alarm["frame"] + 1) if number != STILL]
    assert "audit" not in rows[STILL] and rows[STILL]["still"]
    assert audit["frames"] == len(shown) and alarm["audited"] == len(shown) - 1
    # The frame that was in work when the ten seconds ended ran as those before it.
    saved = [row["flops_saved"] for row in rows if "still" not in row]
    assert all(value > 0.1 for value in saved[: len(shown)]) and set(saved[len(shown) :]) == {0.0}
    (line,) = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith(f"drift at frame {alarm['frame']}")
    ]
    assert "dense from here on" in line
    # What an engine is compared with is its own dense answer.
    words = ["run", clip, "--bundle", tiny_bundle_path, "-o", tmp_path / "dense", "--save", "masks", "--dense", *runs]
    assert _run(_application(), [str(word) for word in (*words, "--max-frames", 2)]) == 0
    for number in range(2):
        differing = np.mean(mask(tmp_path / "out", number) != mask(tmp_path / "dense", number))
        assert rows[number]["audit"]["differing"] == pytest.approx(differing)


@pytest.mark.slow
def test_ten_seconds_are_too_short_for_an_alarm(
    tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """However much differs: it is one value."""
    clip = write_clip(tmp_path / "short.mkv", 30, rate=Fraction(25))
    summary, _ = run(clip, tiny_bundle_path, tmp_path / "out", "--engine", "onnxruntime", "--audit", 1)
    audit = summary["audit"]
    assert (audit["alarms"], audit["values"], audit["frames"]) == ([], 1, 29)
    assert audit["differing"] > 0.05 and "no alarm" in capfd.readouterr().out
