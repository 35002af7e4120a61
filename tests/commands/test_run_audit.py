"""`dovit run --audit` through the real command line: what it says, what it changes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run

IMAGES = 30


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise, each another: with everything stopped the tiny model answers half of the pixels otherwise."""
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{number:02}.png")
    return tmp_path / "in"


def read(folder: Path) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), rows


def test_drift_is_reported_once_and_the_run_goes_on(
    dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path
) -> None:
    run = ("run", images, "--bundle", tiny_bundle_path, "--engine", "onnxruntime", "--save", "masks")
    done = dovit(*run, "--threshold", 0, "--audit", 1, "-q", "-o", "out")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("drift at frame ")]
    assert "the run goes on as it is" in line and "5.00% at most" in line
    summary, rows = read(tmp_path / "out")
    audit = summary["audit"]
    assert (audit["every"], audit["frames"], audit["on_drift"]) == (1, IMAGES, "warn")
    assert (audit["max_disagree"], audit["confidence"], audit["limit_from"]) == (0.05, 0.95, "default")
    (alarm,) = audit["alarms"]
    assert alarm["frame"] < 15 and alarm["evidence"] >= 20 and alarm["thresholds"] == [0, 0]
    shares = [row["audit"]["differing"] for row in rows]
    assert audit["differing"] == pytest.approx(np.mean(shares)) and min(shares) > 0.05
    assert audit["seconds"] == pytest.approx(sum(row["audit"]["ms"] for row in rows) / 1e3)
    assert f"audit: {IMAGES} images ran dense, too" in done.stdout and "1 alarm" in done.stdout
    # What differs is what two runs by themselves show, and the audit changed none of the answers.
    for name, flags in (("own", ("--threshold", 0)), ("dense", ("--dense",))):
        assert dovit(*run, *flags, "-q", "-o", name).returncode == 0
    for number in (0, IMAGES - 1):
        audited, own, dense = (
            np.asarray(Image.open(tmp_path / name / "masks" / f"{number:02}.png")) for name in ("out", "own", "dense")
        )
        assert (audited == own).all()
        assert shares[number] == pytest.approx(np.mean(own != dense))


def test_what_agrees_is_let_alone_and_only_some_are_audited(
    dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path
) -> None:
    run = ("run", images, "--bundle", tiny_bundle_path, "--engine", "onnxruntime", "--save", "masks")
    for name in ("a", "b"):
        done = dovit(*run, "--threshold", 1, "--audit", 4, "-o", name)
        assert done.returncode == 0, done.stderr
        assert "drift" not in done.stderr and "no alarm (evidence 0." in done.stdout
    (summary, rows), (_, again) = read(tmp_path / "a"), read(tmp_path / "b")
    audited = [row["index"] for row in rows if "audit" in row]
    assert 2 <= len(audited) == summary["audit"]["frames"] <= 16
    assert audited == [row["index"] for row in again if "audit" in row]
    assert summary["audit"]["alarms"] == [] and summary["audit"]["differing"] == 0
    assert 0 < summary["audit"]["evidence"] < 1 and summary["audit"]["alarm_at"] == pytest.approx(20)


@pytest.mark.parametrize("action", ["tighten", "dense"])
def test_an_alarm_changes_what_is_run(
    dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path, action: str
) -> None:
    flags = ("--threshold", 0, "--audit", 1, "--on-drift", action, "--threads", 2)
    run = ("run", images, "--bundle", tiny_bundle_path, "--engine", "onnxruntime", "--save", "masks")
    done = dovit(*run, *flags, "-o", "out")
    assert done.returncode == 0, done.stderr
    summary, rows = read(tmp_path / "out")
    alarms = summary["audit"]["alarms"]
    saved = [row["flops_saved"] for row in rows]
    first = alarms[0]["frame"]
    assert all(value == pytest.approx(saved[0]) for value in saved[: first + 1])
    assert all(value < saved[0] - 0.01 for value in saved[first + 1 :])
    if action == "dense":
        assert len(alarms) == 1 and "dense from here on" in done.stderr
        assert saved[first + 1] == saved[-1] == 0
        assert all("audit" not in row for row in rows[first + 1 :])
    else:
        assert "thresholds 0.5, 0.5 from here on" in done.stderr
        assert [alarm["thresholds"][0] for alarm in alarms] == [0, 0.5, 0.75, 0.875][: len(alarms)]
        assert alarms[0]["evidence"] >= 40


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--audit", "0"), "0"),
        (("--on-drift", "warn"), "--audit N"),
        (("--audit", "5", "--on-drift", "stop"), "warn, tighten, dense"),
        (("--audit", "5", "--dense"), "nothing to compare"),
        (("--audit", "5", "--on-drift", "dense", "--deadline-ms", "9"), "--deadline-ms"),
    ],
)
def test_flags_that_cannot_be_meant(dovit: Run, tiny_bundle_path: Path, images: Path, flags, words, tmp_path) -> None:
    done = dovit("run", images, "--bundle", tiny_bundle_path, "-o", "out", *flags)
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_without_gates_is_refused(dovit: Run, dense_bundle_path: Path, images: Path, tmp_path: Path) -> None:
    done = dovit("run", images, "--bundle", dense_bundle_path, "--audit", 5, "-o", "out")
    assert done.returncode == 2 and "nothing to compare" in done.stderr
    assert not (tmp_path / "out").exists()
