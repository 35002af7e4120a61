"""`dovit eval` through the real command line: the contract's keys, its table, and every kind of bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.commands.smaller_input import smaller_sizes
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.datasets.labelled_folder import write_labelled
from tests.test_torch_free import BLOCKED
from tests.tiny import tiny_spec


@pytest.fixture
def folder(tmp_path):
    return write_labelled(tmp_path / "set", images=3)


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_the_report_has_the_contracts_keys(dovit, tiny_bundle_path, folder, tmp_path):
    files = ("--json", "eval.json", "--report", "eval.html")
    done = dovit("eval", tiny_bundle_path, "set", "--controls", "--threads", 1, *files)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    wanted = {"images", "split", "engine", "precision", "thresholds", "dense", "dynamic", "controls", "per_image"}
    assert wanted <= report.keys()
    assert (report["images"], report["split"], report["engine"], report["precision"]) == (
        3,
        "val",
        "onnxruntime",
        "fp32",
    )
    assert report["thresholds"] == [0.7, 0.7]
    quality = {"miou", "boundary_iou", "pixel_accuracy", "iou"}
    assert quality <= report["dense"].keys()
    assert quality | {"flops_saved", "gmacs", "drop", "drop_interval"} <= report["dynamic"].keys()
    assert list(report["dense"]["iou"]) == [f"class {number}" for number in range(5)]
    assert report["dynamic"]["drop_interval"] is None
    assert "no intervals: 3 images, taken as independent; at least 8 are needed" in done.stdout
    controls = report["controls"]
    assert {"random", "position", "other", "first_gate", "oracle", "gate_efficiency"} <= controls.keys()
    alike = [controls[name]["gmacs"] for name in ("oracle", "random", "position", "other")]
    assert alike == [report["dynamic"]["gmacs"]] * 4
    gain = report["dynamic"]["miou"] - controls["position"]["miou"]
    assert controls["position"]["rule_gain"] == pytest.approx(gain)
    assert f"position {gain:z.2f}, another image's" in done.stdout
    assert (controls["position_images"], "set (val)") == (3, controls["position_from"])
    assert [entry["size"] for entry in controls["smaller_input"]] == [[48, 64], [32, 48]]
    gmacs = [report["dense"]["gmacs"], *(entry["gmacs"] for entry in controls["smaller_input"])]
    assert gmacs == sorted(gmacs, reverse=True)
    assert [row["image"] for row in report["per_image"]] == ["drive_000", "drive_001", "drive_002"]
    for text in (
        "dense",
        "dynamic",
        "random, same counts",
        "oracle gate, same",
        "oracle gate, any",
        "dense at 48x64",
        "gate efficiency",
    ):
        assert text in done.stdout
    assert f"next: dovit bench {tiny_bundle_path}" in done.stderr
    page = (tmp_path / "eval.html").read_text()
    assert f"<dd>{report['dynamic']['miou']:.2f}<" in page and ">dense at 48x64<" in page and ">48x64<" in page
    # Three images, each with its five pictures, the worst first.
    losses = {row["image"]: row["miou_dense"] - row["miou_dynamic"] for row in report["per_image"]}
    pictured = re.findall(r"<article><h4>(\w+)</h4>", page)
    assert pictured == sorted(losses, key=lambda image: -losses[image])
    names = ("input", "label", "dense mask", "dynamic mask", "exit depth")
    assert re.findall(r'alt="([^"]+) of drive_001"', page) == list(names)
    fp32 = dovit("eval", tiny_bundle_path, "set", "--precision", "fp32", "--json", "fp32.json")
    assert f"next: dovit bench {tiny_bundle_path} --precision fp32" in fp32.stderr


def test_where_positions_are_learned(dovit, tiny_bundle_path, folder, tmp_path):
    def learned(*words: object) -> tuple[str, int]:
        done = dovit("eval", tiny_bundle_path, "set", "--controls", *words, "--json", "eval.json")
        assert done.returncode == 0, done.stderr
        controls = json.loads((tmp_path / "eval.json").read_text())["controls"]
        assert f"position: learned from {controls['position_from']}, " in done.stdout
        return controls["position_from"], controls["position_images"]

    write_labelled(tmp_path / "other: one", images=2)
    assert learned("--position-from", "other: one:val") == ("other: one (val)", 2)
    for kind in ("images", "labels"):
        for number in range(3):
            (folder / kind / "train").mkdir(exist_ok=True)
            copied = (folder / kind / "val" / f"drive_{number:03d}.png").read_bytes()
            (folder / kind / "train" / f"drive_{number + 2:03d}.png").write_bytes(copied)
    (folder / "train.txt").write_text("drive_002\ndrive_003\ndrive_004\n")
    # An image of the same name in another split is another image; one that is evaluated itself is left out.
    assert learned() == ("set (train)", 3)
    assert learned("--split", "train:drive_002") == ("set (train)", 2)
    assert learned("--split", "train") == ("set (train)", 3)


def test_without_controls_there_are_none_and_the_next_command_works(dovit, tiny_bundle_path, folder, tmp_path):
    done = dovit("eval", tiny_bundle_path, "set", "--split", "val:drive_00", "--threshold", "0.9,0.5", "-v")
    assert done.returncode == 0, done.stderr
    assert "random" not in done.stdout
    assert "IoU per class" in done.stdout and "image by image" in done.stdout and "drive_002" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    # Of the same run.
    assert "--threshold 0.9,0.5 " in line
    again = dovit(*line.removeprefix("next: dovit ").split())
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["controls"] is not None


def test_thresholds_take_effect(dovit, tiny_bundle_path, folder, tmp_path):
    saved = []
    for threshold in ("0", "1", "0.6,0.7"):
        done = dovit("eval", tiny_bundle_path, "set", "--threshold", threshold, "--json", "eval.json", "--quiet")
        assert done.returncode == 0, done.stderr
        saved.append(json.loads((tmp_path / "eval.json").read_text())["dynamic"]["flops_saved"])
    assert saved[0] > 0 > saved[1]
    assert json.loads((tmp_path / "eval.json").read_text())["thresholds"] == [0.6, 0.7]


def test_quiet_prints_results_alone(dovit, tiny_bundle_path, folder):
    done = dovit("eval", tiny_bundle_path, "set", "--quiet")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "mIoU" in done.stdout


def test_intervals_count_seconds_of_recording(dovit, tiny_bundle_path, tmp_path):
    classes = write_labelled(tmp_path / "set", images=8) / "classes.json"
    listed = json.loads(classes.read_text())
    found = {}
    for rate in (None, 0.1, 0.2):
        classes.write_text(json.dumps({**listed, "frame_rate": rate}))
        done = dovit("eval", tiny_bundle_path, "set", "--json", "eval.json")
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "eval.json").read_text())
        interval, boot = report["dynamic"]["drop_interval"], report["bootstrap"]
        found[rate] = (interval is not None, boot["blocks"], boot["seconds_per_block"])
        assert interval is None or interval[0] <= report["dynamic"]["drop"] <= interval[1]
        words = "8 images, taken as independent" if rate is None else f"{boot['blocks']} blocks of 10 s of recording"
        assert words in done.stdout
    assert found == {None: (True, 8, None), 0.1: (True, 8, 10.0), 0.2: (False, 4, 10.0)}


def test_a_dense_and_a_sliding_bundle(dovit, dense_bundle_path, setr_bundle_path, folder, tmp_path):
    assert dovit("eval", dense_bundle_path, "set").returncode == 0
    refused(dovit("eval", dense_bundle_path, "set", "--controls"), 2, "without gates")
    done = dovit("eval", setr_bundle_path, "set", "--controls", "--json", "eval.json")
    assert done.returncode == 0, done.stderr
    assert "sliding window" in done.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["controls"]["smaller_input"] == []


def test_it_works_without_torch_and_says_what_is_left_out(tiny_bundle_path, folder, tmp_path):
    arguments = ["eval", str(tiny_bundle_path), str(folder), "--controls", "--json", "eval.json"]
    code = f"from dovit_deploy.cli import _application, _run\nsys.exit(_run(_application(), {arguments!r}))"
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dense at smaller inputs is left out" in done.stderr and "pip install" in done.stderr
    controls = json.loads((tmp_path / "eval.json").read_text())["controls"]
    assert controls["smaller_input"] == [] and controls["random"]["miou"] >= 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--engine", "abacus"), 2, ("abacus",)),
        (("--precision", "fp7"), 2, ("fp7",)),
        (("--threshold", "1.5"), 2, ("[0, 1]",)),
        (("--threshold", "0.5,0.5,0.5"), 2, ("2 gates",)),
        (("--json", "no/such/folder.json"), 2, ("--json",)),
        (("--split", "dev"), 3, ("dev.txt", "splits here: val")),
        (("--position-from", "set"), 2, ("--position-from set", "--controls")),
        (("--controls", "--position-from", "set:dev"), 3, ("dev.txt",)),
        (("--controls", "--position-from", "set:val"), 3, ("all of its 3 images are evaluated",)),
        (("--controls", "--position-from", "absent:val"), 3, ("absent: no such data set",)),
        (("--split", "val:other"), 3, ("none starts with 'other'",)),
    ],
)
def test_bad_options(dovit, tiny_bundle_path, folder, arguments, code, words):
    refused(dovit("eval", tiny_bundle_path, "set", *arguments), code, *words)


def grey(path: Path, size: tuple[int, int], value: int = 0) -> None:
    Image.new("L", size, value).save(path)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "val.txt").write_text("\n"), ("val.txt", "lists no image")),
        (lambda root: grey(root / "labels/val/drive_002.png", (30, 20)), ("drive_002.png", "30x20")),
        (
            lambda root: grey(root / "labels/val/drive_002.png", (80, 60), 5),
            ("drive_002.png", "value 5"),
        ),
        (lambda root: spoil(root / "images/val/drive_002.png"), ("drive_002.png", "cannot be decoded")),
        (lambda root: spoil(root / "labels/val/drive_002.png"), ("drive_002.png", "cannot be decoded")),
        (lambda root: (root / "images/val/drive_001.png").unlink(), ("drive_001",)),
        (lambda root: (root / "classes.json").write_text("{"), ("classes.json",)),
    ],
    ids=["empty", "size", "id", "image", "label", "missing", "classes"],
)
def test_faults_of_the_data_set_leave_no_report(dovit, tiny_bundle_path, folder, tmp_path, harm, words):
    harm(folder)
    refused(dovit("eval", tiny_bundle_path, "set", "--json", "eval.json"), 3, *words)
    assert not (tmp_path / "eval.json").exists()


def test_what_is_no_data_set_and_other_classes(dovit, tiny_bundle_path, tmp_path):
    (tmp_path / "void").mkdir()
    refused(dovit("eval", tiny_bundle_path, "void"), 3, "not a data set")
    refused(dovit("eval", tiny_bundle_path, "absent"), 3, "absent")
    refused(dovit("eval", tiny_bundle_path, "scenes"), 3, "11 classes", "the bundle tiny has 5")
    write_labelled(tmp_path / "four", classes=4, images=1)
    refused(dovit("eval", tiny_bundle_path, "four"), 3, "4 classes", "has 5")
    refused(dovit("eval", "absent.dovit", "four"), 3, "absent.dovit")


def sizes(**options: object) -> tuple[tuple[int, int], ...]:
    spec: VisionTransformerSpec = tiny_spec(**options)  # type: ignore[arg-type]
    return smaller_sizes(spec)


def test_smaller_sizes_are_whole_patches_and_smaller():
    assert sizes(size=(360, 480)) == ((288, 384), (240, 320))
    assert sizes(size=(16, 16)) == ()
    assert sizes(size=(32, 16)) == ((16, 16),)
    for size in ((512, 1024), (480, 640), (97, 33)):
        for small in sizes(size=size):
            assert all(side % 16 == 0 for side in small) and np.prod(small) < np.prod(size)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(dovit, tiny_bundle_path, folder, without, tmp_path):
    (tmp_path / "notes.html").write_text("<p>mine")
    command = ("eval", tiny_bundle_path, "set", "--report")
    refused(dovit(*command, "eval.csv"), 2, "--report eval.csv", "end in .html")
    refused(dovit(*command, "notes.html"), 2, "no page of dovit's, and is not replaced")
    refused(dovit(*command, tiny_bundle_path / "eval.html"), 2, "lies in the bundle")
    refused(dovit(*command, "eval.html", **without("jinja2")), 5, "dovit-deploy[report]")
    assert not (tmp_path / "eval.html").exists() and (tmp_path / "notes.html").read_text() == "<p>mine"
