"""`dovit calibrate` through the real command line, with a tiny bundle and a tiny data set."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle, file_entry
from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.bundle.parity import PrecisionParity
from dovit_deploy.calibrate.images import SplitImages
from dovit_deploy.commands.calibrate import _with_controls
from dovit_deploy.commands.calibration_report import show_calibration
from dovit_deploy.commands.console import ProgressDisplay
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.runtime.session import Session
from tests.bundle.test_bundle import VALUES, contents, made
from tests.calibrate.test_controls import with_parts
from tests.conftest import Run
from tests.datasets.labelled_folder import write_labelled
from tests.train.tiny_folder import write_folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten images; the tiny bundle has five classes, so a fifth is added to the list."""
    root = write_folder(tmp_path / "data", images=10, size=(56, 72), splits=("val",))
    content = json.loads((root / "classes.json").read_text())
    content["classes"].insert(4, {"id": 4, "name": "class 4", "color": [9, 9, 9]})
    (root / "classes.json").write_text(json.dumps(content))
    return root


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_milliseconds_are_judged_by_a_latency_model(dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    result = dovit(
        "calibrate", bundle_copy, data / "images" / "val", "--latency-ms", 1000, "--dry-run", "--json", "report.json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "at most 1000 ms on this machine, by a latency model that is" in report["budget"]["text"]
    assert 0 < report["chosen"]["judged"] < 1000
    assert "other patterns of tokens predicted within" in result.stderr


def test_a_copy_for_a_budget_of_macs(dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    before = contents(bundle_copy)
    files = ("--json", "report.json", "--report", "report.html")
    result = dovit("calibrate", bundle_copy, data, "--flops", 0.1, "-o", "new.dovit", *files)
    assert result.returncode == 0, result.stderr
    assert contents(bundle_copy) == before
    new = Bundle.open(tmp_path / "new.dovit")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report.pop("bundle") == str(new.path)
    assert report.pop("data")["images"] == 10
    calibration = Calibration.model_validate(report)
    assert calibration.chosen.flops_saved >= 0.1
    controls = calibration.controls
    page = (tmp_path / "report.html").read_text()
    assert f"<dd>{calibration.chosen.flops_saved:z.1%}<" in page and ">48x64<" in page
    assert page.count("<title>random, same counts: ") == 1 and 'scope="row">held out<' in page
    assert "Class by class, on held-out images" in page
    assert f"{len(calibration.held_out)} of {len(calibration.held_out)} held-out images, the worst first" in page
    assert controls.random.gmacs == controls.oracle.gmacs == pytest.approx(calibration.chosen.gmacs)
    assert [small.size for small in controls.smaller_input] == [(48, 64), (32, 48)]
    for name in ("random, same counts", "oracle, same counts", "dense at 48x64"):
        assert name in result.stdout
    assert new.manifest.defaults.thresholds == calibration.thresholds
    assert (new.path / "calibration.json").is_file()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("next: ")]
    assert line == f"next: dovit eval new.dovit {data} --split val"
    assert dovit(*line.split()[2:], "--threads", 1).returncode == 0
    assert "mIoU drop" in result.stdout
    assert (tmp_path / "new-calibration.png").read_bytes()[:4] == b"\x89PNG"
    # What was calibrated is what runs: the report's mean over all images, run again by another command.
    again = dovit("run", data / "images" / "val", "--bundle", "new.dovit", "-o", "out", "--json", "run.json")
    assert again.returncode == 0
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["flops_saved"]["mean"] == pytest.approx(calibration.chosen_on_all.flops_saved, abs=1e-6)


def test_in_place_and_dry(dovit: Run, bundle_copy: Path, data: Path) -> None:
    before = contents(bundle_copy)
    arguments = ("calibrate", bundle_copy, data / "images" / "val", "--max-disagree", 0.6, "--confidence", 0.6, "-q")
    dry = dovit(*arguments, "--dry-run", "--report", data.parent / "dry.html")
    assert dry.returncode == 0, dry.stderr
    page = (data.parent / "dry.html").read_text()
    assert "What is promised" in page and ">chosen<" in page and "pixels as in the dense answer" in page
    assert dovit(*arguments, "--report", bundle_copy / "x.html").returncode == 2
    assert contents(bundle_copy) == before
    real = dovit(*arguments)
    assert real.returncode == 0, real.stderr
    changed = {name for name, digest in contents(bundle_copy).items() if before.get(name) != digest}
    assert changed == {"manifest.json", "calibration.json"}
    assert Bundle.open(bundle_copy).manifest.defaults.origin == "calibration"
    assert json.loads((bundle_copy / "calibration.json").read_text())["controls"] is None
    assert dry.stdout.splitlines()[-2].split(":")[0] == real.stdout.splitlines()[-4].split(":")[0]


def test_a_promise_without_labels(dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    """The sequence that was tested, its p-values and units stand in the report and in the bundle."""
    arguments = ("--max-disagree", 0.6, "--confidence", 0.6, "--unit", "image", "--json", "report.json")
    result = dovit("calibrate", bundle_copy, data / "images" / "val", *arguments)
    assert result.returncode == 0, result.stderr
    assert "10 images count as independent of each other, as the user says" in result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    test = report["test"]
    assert json.loads((bundle_copy / "calibration.json").read_text())["test"] == test
    assert (test["max_disagree"], test["confidence"]) == (0.6, 0.6)
    assert (test["unit"], test["unit_said_by"]) == ("image", "user")
    assert (test["units_searched"], test["units"], test["least_units"]) == (3, 7, 1)
    steps = test["sequence"]
    assert [step["shown"] for step in steps] == [step["p_value"] <= 0.4 for step in steps]
    assert test["boldest"] == sum(step["shown"] for step in steps) - 1
    assert test["stopped_at"] == (None if steps[-1]["shown"] else len(steps) - 1)
    assert steps[test["boldest"]]["thresholds"] == report["chosen"]["thresholds"]
    assert "at most 60.00% of the pixels differ from the dense answer, with confidence 0.6" in result.stdout
    assert "tested on 7 images, p " in result.stdout


def test_images_without_a_pixel_that_counts_are_judged_on_all_pixels(
    dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path
) -> None:
    """Labels of nothing but void are as good as none; a budget of mIoU still refuses them."""
    for label in (data / "labels" / "val").iterdir():
        Image.new("L", (72, 56), 255).save(label)
    promise = ("--max-disagree", 0.6, "--confidence", 0.6, "--dry-run")
    labelled = dovit("calibrate", bundle_copy, data, *promise, "--json", "report.json")
    assert labelled.returncode == 0, labelled.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chosen"]["miou"] is None and report["controls"] is None
    assert 0 < report["test"]["sequence"][0]["differing"] <= 0.6
    refused(dovit("calibrate", bundle_copy, data, "--max-drop", 50), 3, "no labelled pixel")


def test_too_few_units_are_counted_before_anything_runs(dovit: Run, bundle_copy: Path, data: Path) -> None:
    before = contents(bundle_copy)
    promise = ("--max-disagree", 0.02, "--confidence", 0.95)
    refused(dovit("calibrate", bundle_copy, data, *promise), 4, "149 held-out images", "10 images given")
    # All names are numbered alike: frames of one drive.
    refused(
        dovit("calibrate", bundle_copy, data, *promise, "--unit", "drive"), 4, "149 held-out drives", "1 drive given"
    )
    content = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps({**content, "frame_rate": 0.5}))
    refused(
        dovit("calibrate", bundle_copy, data, *promise), 4, "149 held-out blocks of 10 s", "2 blocks", "--unit image"
    )
    assert contents(bundle_copy) == before


def test_what_other_precisions_lose_is_measured_anew(
    dovit: Run, int8_bundle_path: Path, data: Path, tmp_path: Path
) -> None:
    """Else `run --engine auto` would trust figures of other thresholds."""
    stale = PrecisionParity(
        engine="openvino", precision="int8", agreement=0.125, drop=9.0, confidence_error=(0.5, 0.5), images=3
    )
    bundle = Bundle.open(shutil.copytree(int8_bundle_path, tmp_path / "old.dovit"))
    report = bundle.parity().model_copy(update={"precisions": (stale,), "max_drop": 7.0})
    (bundle.path / "parity.json").write_text(report.model_dump_json())
    files = {**bundle.manifest.files, "parity.json": file_entry(bundle.path / "parity.json")}
    (bundle.path / "manifest.json").write_text(bundle.manifest.model_copy(update={"files": files}).to_json())
    before = contents(bundle.path)
    result = dovit("calibrate", "old.dovit", data, "--flops", 0.1, "-o", "new.dovit")
    assert result.returncode == 0, result.stderr
    new = Bundle.open(tmp_path / "new.dovit").parity()
    assert new.max_drop == 7 and new.forms == report.forms
    assert "onnxruntime" in [entry.engine for entry in new.precisions] and stale not in new.precisions
    # On the held-out half, by its labels.
    assert {entry.images for entry in new.precisions} == {5} and all(entry.drop is not None for entry in new.precisions)
    assert "onnxruntime int8: " in result.stdout and "of the pixels as in fp32, mIoU drop" in result.stdout
    assert contents(bundle.path) == before


def test_a_control_that_cannot_be_run_is_reported(
    setr_bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A sliding window has no smaller input; the file and the screen both give the reason."""
    data = dataset_from_path(write_labelled(tmp_path / "set", images=8), "val")
    bundle, images = Bundle.open(setr_bundle_path), SplitImages(data, name="set", split="val")
    progress = ProgressDisplay("", total=None, unit="images")
    with Session(bundle, threads=1) as session:
        chosen = made().chosen.model_copy(update={"thresholds": VALUES[:1]})
        calibration = made().model_copy(update={"chosen": chosen, "chosen_on_all": chosen})
        calibration = _with_controls(with_parts(calibration, images, range(4)), bundle, session, images, progress)
    assert calibration.controls is not None
    assert calibration.controls.smaller_input == ()
    assert "sliding window" in str(calibration.controls.left_out)
    assert progress.step == "controls on held-out images"
    show_calibration(calibration, verbose=False, quiet=False)
    shown = capsys.readouterr()
    assert "random, same counts" in shown.out and "dense at" not in shown.out
    assert "dense at smaller inputs is left out: a sliding window" in shown.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "0 budgets"),
        (("--flops", "0.2", "--max-drop", "1"), "2 budgets"),
        (("--max-disagree", "0.1"), "--confidence"),
        (("--flops", "0.2", "--confidence", "0.9"), "--max-disagree"),
        (("--flops", "1.5"), "--flops"),
        (("--max-drop", "nan"), "--max-drop"),
        (("--latency-ms", "-1"), "--latency-ms"),
        (("--flops", "0.2", "--unit", "image"), "--max-disagree"),
        (("--max-disagree", "0.2", "--confidence", "0.9", "--unit", "frame"), "image, block, drive"),
        (("--max-disagree", "0.2", "--confidence", "0.9", "--unit", "block"), "--frame-rate"),
        (("--max-disagree", "0.2", "--confidence", "0.9", "--unit", "image", "--frame-rate", "9"), "no meaning"),
        (("--max-disagree", "0.2", "--confidence", "0.9", "--frame-rate", "-9"), "--frame-rate"),
        (("--flops", "0.2", "-o", "new.folder"), "NAME.dovit"),
        (("--flops", "0.2", "--json", "no/such/x.json"), "--json"),
    ],
)
def test_usage(dovit: Run, bundle_copy: Path, data: Path, arguments: tuple[str, ...], word: str) -> None:
    before = contents(bundle_copy)
    refused(dovit("calibrate", bundle_copy, data, *arguments), 2, word)
    assert contents(bundle_copy) == before


def test_an_existing_output_is_kept(dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "new.dovit").mkdir()
    refused(dovit("calibrate", bundle_copy, data, "--flops", 0.1, "-o", "new.dovit"), 2, "exists")
    refused(dovit("calibrate", bundle_copy, data, "--flops", 0.1, "-o", bundle_copy), 2, "exists")
    assert list((tmp_path / "new.dovit").iterdir()) == []


@pytest.mark.parametrize(
    "budget", [("--flops", 0.99), ("--latency-ms", 0.0001), ("--max-disagree", 0.001, "--confidence", 0.99)]
)
def test_a_budget_out_of_reach_changes_nothing(dovit: Run, bundle_copy: Path, data: Path, budget: tuple) -> None:
    before = contents(bundle_copy)
    refused(dovit("calibrate", bundle_copy, data, *budget), 4, "held-out" if len(budget) > 2 else "not reached")
    assert contents(bundle_copy) == before
    assert {path.name for path in bundle_copy.parent.iterdir()} == {bundle_copy.name, "data"}


def test_faults_of_the_data(dovit: Run, bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    before = contents(bundle_copy)
    refused(dovit("calibrate", bundle_copy, data / "images" / "val", "--max-drop", 1), 3, "images")
    refused(dovit("calibrate", bundle_copy, data, "--max-drop", 1, "--split", "test"), 3, "test")
    refused(dovit("calibrate", bundle_copy, "absent", "--flops", 0.1), 3, "absent")
    four = write_folder(tmp_path / "four", images=6, splits=("val",))
    refused(dovit("calibrate", bundle_copy, four, "--flops", 0.1), 3, "4 classes")
    (data / "labels" / "val" / "val_7.png").unlink()
    refused(dovit("calibrate", bundle_copy, data, "--max-drop", 1), 3, "val_7")
    assert contents(bundle_copy) == before


def test_a_bundle_without_gates_and_an_installed_one(
    dovit: Run, dense_bundle_path: Path, bundle_copy: Path, data: Path, tmp_path: Path
) -> None:
    refused(dovit("calibrate", dense_bundle_path, data, "--flops", 0.1, "-o", "x.dovit"), 2, "without gates")
    (tmp_path / "site-packages").mkdir()
    inside = bundle_copy.rename(tmp_path / "site-packages" / "x.dovit")
    refused(dovit("calibrate", inside, data, "--flops", 0.1), 2, "-o NEW.dovit")


def test_a_kill_in_the_middle_leaves_the_bundle(bundle_copy: Path, data: Path, tmp_path: Path) -> None:
    before = contents(bundle_copy)
    command = [sys.executable, "-m", "dovit_deploy", "calibrate", bundle_copy, data, "--latency-ms", "0.3"]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stderr is not None
    child.stderr.read(1)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert contents(bundle_copy) == before
    assert {path.name for path in tmp_path.iterdir()} == {bundle_copy.name, "data"}
