"""A classifier through the real command line: run, bench, eval, calibrate, inspect and export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.runtime.classification import Classifier
from dovit_deploy.runtime.session import Session
from dovit_deploy.sources.images import read_image
from tests.datasets.class_folders import write_class_folders
from tests.datasets.labelled_folder import write_labelled
from tests.test_torch_free import BLOCKED

FOLDERS = ("a", "b", "c", "d", "e")


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.fixture
def images(tmp_path):
    """Two images, of which the second is too small to be written on."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate(((200, 300), (40, 30))):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"image {number}.png")
    return folder


@pytest.fixture
def labelled(tmp_path):
    return write_class_folders(tmp_path / "set", folders=FOLDERS, images=2)


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


def test_images_get_their_classes(dovit, classifier_bundle_path, tiny_bundle_path, images, tmp_path):
    done = dovit("run", images, "--bundle", classifier_bundle_path, "-o", "out", "--json", "run.json")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frames.jsonl",
        "overlay",
        "report.html",
        "summary.json",
    ]
    rows = rows_in(tmp_path / "out")
    assert dovit("run", images, "--bundle", tiny_bundle_path, "-o", "segmented").returncode == 0
    assert rows[0].keys() == rows_in(tmp_path / "segmented")[0].keys() | {"top"}
    with Session(Bundle.open(classifier_bundle_path), threads=1) as session:
        for row, path in zip(rows, sorted(images.iterdir()), strict=True):
            rgb = read_image(path)
            answer = Classifier(session).predict(rgb)
            assert [(entry["id"], entry["name"]) for entry in row["top"]] == [(e.id, e.name) for e in answer.classes]
            given = [entry["probability"] for entry in row["top"]]
            assert given == pytest.approx([entry.probability for entry in answer.classes], rel=1e-5)
            assert row["tokens"]["kept"] == list(answer.tokens.kept) and len(row["tokens"]["kept"]) == 3
            assert read_image(tmp_path / "out" / "overlay" / path.name).shape == rgb.shape
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == json.loads((tmp_path / "run.json").read_text())
    assert (summary["frames"], summary["thresholds"]) == (2, []) and "top" not in summary
    assert len(summary["tokens"]["kept"]) == 3 and summary["flops_saved"]["mean"] > 0


def test_a_video_without_torch(classifier_bundle_path, tmp_path):
    code = f"""
from dovit_scenes.__main__ import main as render
from dovit_deploy.cli import _application, _run
sys.argv = ["scenes", "clip.mp4", "--frames", "4", "--size", "320x180"]
render()
arguments = ["run", "clip.mp4", "--bundle", {str(classifier_bundle_path)!r}, "-o", "out", "--save", "overlay,tokens"]
sys.exit(_run(_application(), [*arguments, "--quiet"]))
"""
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows_in(tmp_path / "out")) == 4
    frames = []
    for name in ("overlay.mp4", "tokens.mp4"):
        video = cv2.VideoCapture(str(tmp_path / "out" / name))
        frames.append(video.read()[1])
        video.release()
    # The key of the selections stands below the image.
    assert frames[0].shape == (180, 320, 3)
    assert frames[1].shape[0] > 180 and frames[1].shape[1:] == (320, 3)
    # Left and right of the crop the map is dark, and the overlay is the image.
    assert frames[1][60:90, 5:20].mean() < 0.6 * frames[0][60:90, 5:20].mean()


def test_dense_runs_everything(dovit, classifier_bundle_path, images, tmp_path):
    done = dovit("run", images, "--bundle", classifier_bundle_path, "--dense", "-o", "out", "--save", "tokens")
    assert done.returncode == 0, done.stderr
    row = rows_in(tmp_path / "out")[0]
    assert set(row["tokens"]["kept"]) == {17} and row["flops_saved"] == 0
    assert not (tmp_path / "out" / "overlay").exists()


def test_names_from_a_file(dovit, classifier_bundle_path, images, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"n0000000{number} animal {number}" for number in range(5)))
    done = dovit("run", images, "--bundle", classifier_bundle_path, "-o", "out", "--classes", "names.txt")
    assert done.returncode == 0, done.stderr
    for row in rows_in(tmp_path / "out"):
        assert [entry["name"] for entry in row["top"]] == [f"animal {entry['id']}" for entry in row["top"]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--classes", "four.txt"), 3, ("--classes names 4 classes; the network has 5",)),
        (("--classes", "absent.txt"), 3, ("no class list at absent.txt",)),
        (("--save", "overlay,masks"), 2, ("'masks' given, and namer names whole images", "allowed: overlay, tokens")),
        (("--save", "heat"), 2, ("heat",)),
        (("--threshold", "0.5"), 2, ("without gates",)),
    ],
)
def test_what_a_run_refuses(dovit, classifier_bundle_path, images, tmp_path, arguments, code, words):
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    refused(dovit("run", images, "--bundle", classifier_bundle_path, "-o", "out", *arguments), code, *words)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.*"))


def test_bench(dovit, classifier_bundle_path, images, tmp_path):
    arguments = ("--frames", images, "--repeat", 1, "--json", "bench.json")
    done = dovit("bench", classifier_bundle_path, *arguments)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert result["dense"]["latency_ms"].keys() == result["dynamic"]["latency_ms"].keys()
    assert result["speedup"] > 0 and result["predicted_speedup"] > 1 and len(result["kept"]) == 3


def test_eval_says_how_often_it_is_right(dovit, classifier_bundle_path, labelled, tmp_path):
    done = dovit("eval", classifier_bundle_path, "set", "--controls", "-v", "--json", "eval.json", "--report", "e.html")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    wanted = {"images", "split", "engine", "precision", "thresholds", "dense", "dynamic", "controls", "per_image"}
    assert wanted <= report.keys()
    assert (report["images"], report["split"], report["thresholds"]) == (10, "val", [])
    assert {"top1", "top5"} <= report["dense"].keys()
    assert {"top1", "top5", "flops_saved", "gmacs", "drop", "drop_interval"} <= report["dynamic"].keys()
    assert report["dense"]["top5"] == report["dynamic"]["top5"] == 100
    controls = report["controls"]
    assert {"random", "first_gate", "oracle", "gate_efficiency", "smaller_input"} <= controls.keys()
    assert controls["random"] is controls["oracle"] is None and "no gates" in done.stderr
    assert [entry["size"] for entry in controls["smaller_input"]] == [[48, 48]]
    page = (tmp_path / "e.html").read_text()
    assert f"<dd>{report['dynamic']['top1']:.2f}<" in page and ">48x48<" in page and "<dt>top-1, dynamic</dt>" in page
    wrong = {row["image"] for row in report["per_image"] if row["top_dynamic"][0] != row["label"]}
    pictured = re.findall(r"<article><h4>(.+?)</h4>", page)
    assert len(pictured) == min(4, len(wrong)) and set(pictured) <= wrong
    assert page.count('alt="dynamic answer of') == len(pictured) and 'alt="label of' not in page
    with Session(Bundle.open(classifier_bundle_path), threads=1) as session:
        classifier = Classifier(session)
        for row in report["per_image"]:
            rgb = np.array(Image.open(labelled / "val" / f"{row['image']}.png"))
            for way in ("dense", "dynamic"):
                answer = classifier.predict(rgb, dense=way == "dense")
                assert row[f"top_{way}"] == [entry.id for entry in answer.classes]
            assert row["label"] == FOLDERS.index(row["image"][0])
            assert row["tokens"]["kept"] == list(answer.tokens.kept)
    right = [row["top_dynamic"][0] == row["label"] for row in report["per_image"]]
    assert report["dynamic"]["top1"] == pytest.approx(100 * np.mean(right))
    for text in ("top-1", "dense at 48x48", "same class as dense", "order of the folders", "image by image", "a/a_0"):
        assert text in done.stdout
    assert "next: dovit bench" in done.stderr


def test_eval_without_torch(classifier_bundle_path, labelled, tmp_path):
    arguments = ["eval", str(classifier_bundle_path), str(labelled), "--controls", "--json", "eval.json"]
    code = f"from dovit_deploy.cli import _application, _run\nsys.exit(_run(_application(), {arguments!r}))"
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["controls"]["smaller_input"] == []


def test_without_a_dense_form(dovit, pooling_bundle_path, images, labelled, tmp_path):
    run = ("run", images, "--bundle", pooling_bundle_path)
    done = dovit(*run, "-o", "out", "--save", "tokens")
    assert done.returncode == 0, done.stderr
    assert len(rows_in(tmp_path / "out")[0]["top"]) == 5
    refused(dovit(*run, "--dense", "-o", "dense"), 2, "no dense network")
    assert not (tmp_path / "dense").exists()
    done = dovit("bench", pooling_bundle_path, "--frames", images, "--repeat", 1, "--json", "bench.json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert result["dense"] is result["speedup"] is result["realised_efficiency"] is None
    assert result["predicted_speedup"] > 0 and result["dynamic"]["latency_ms"]["p50"] > 0
    done = dovit("eval", pooling_bundle_path, "set", "--controls", "--json", "eval.json", "--report", "e.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "e.html").read_text()
    assert "no dense form to compare with" in page and 'alt="dense answer of' not in page
    report = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    assert report["dense"] is report["dynamic"]["drop"] is report["dynamic"]["drop_interval"] is None
    assert report["dynamic"]["top5"] == 100 and report["controls"]["smaller_input"] == []
    assert "no dense" in done.stdout and "no dense network of its weights" in done.stderr


def test_data_sets_that_do_not_fit(dovit, classifier_bundle_path, tiny_bundle_path, labelled, tmp_path):
    write_labelled(tmp_path / "maps", images=1)
    refused(dovit("eval", classifier_bundle_path, "maps"), 3, "label maps, for segmentation")
    refused(dovit("eval", classifier_bundle_path, "scenes"), 3, "pixel by pixel")
    refused(dovit("eval", tiny_bundle_path, "set"), 3, "images in class folders, for classifiers")
    refused(dovit("eval", classifier_bundle_path, "set", "--split", "test"), 3, "splits here: val")
    refused(dovit("eval", classifier_bundle_path, "absent"), 3, "no such data set")
    write_class_folders(tmp_path / "few", images=1)
    refused(
        dovit("eval", classifier_bundle_path, "few", "--json", "e.json"), 3, "3 classes (", "the bundle namer has 5"
    )
    assert not (tmp_path / "e.json").exists()


def test_a_subset_of_the_classes_with_a_list(dovit, classifier_bundle_path, tmp_path):
    write_class_folders(tmp_path / "few", folders=("d", "b"), images=1)
    (tmp_path / "few" / "classes.json").write_text(json.dumps(list(FOLDERS)))
    done = dovit("eval", classifier_bundle_path, "few", "--json", "eval.json")
    assert done.returncode == 0, done.stderr
    assert [row["label"] for row in json.loads((tmp_path / "eval.json").read_text())["per_image"]] == [1, 3]


def test_calibrate_and_inspect(dovit, classifier_bundle_path, labelled):
    refused(dovit("calibrate", classifier_bundle_path, "set", "--flops", 0.2), 2, "without gates")
    done = dovit("inspect", classifier_bundle_path)
    assert done.returncode == 0, done.stderr
    for text in ("classification", "shorter side resized to 73 (bicubic)", "17 -> 9 -> 7, the same for every image"):
        assert text in done.stdout


def test_export_takes_names_and_no_stride(dovit, classifier_bundle_path, tmp_path):
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    refused(
        dovit("export", classifier_bundle_path, "-o", "new.dovit", "--classes", "four.txt"),
        *(3, "--classes names 4 classes; the network has 5"),
    )
    refused(
        dovit("export", classifier_bundle_path, "-o", "new.dovit", "--stride", "32x32"),
        *(2, "--stride: only a segmentation network"),
    )
    assert not (tmp_path / "new.dovit").exists()
