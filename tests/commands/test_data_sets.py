"""Data sets as people have them, through the real command line: what is read, what is said of it, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.cli import _application, _run
from tests.datasets.labelled_folder import ade20k_folder, write_labelled
from tests.train.tiny_folder import write_folder

NAMES = [f"class {number}" for number in range(5)]
"""Of the tiny bundle."""


@pytest.fixture
def evaluated(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """`dovit eval TINY set ...` in this process: exit code, stderr, and the report where there is one."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, dataset: str = "set") -> tuple[int, str, dict]:
        report = tmp_path / "eval.json"
        report.unlink(missing_ok=True)
        given = ["eval", tiny_bundle_path, dataset, "--threads", 1, "--json", report, *arguments]
        code = _run(_application(), [str(argument) for argument in given])
        error = capfd.readouterr().err
        assert "Traceback" not in error
        return code, error, json.loads(report.read_text()) if report.exists() else {}

    return run


def harmless_files(root: Path) -> None:
    for name in ("images/val/Thumbs.db", "labels/val/desktop.ini", "labels/val/.DS_Store"):
        (root / name).write_bytes(b"x")


def no_colours(root: Path) -> None:
    content = json.loads((root / "classes.json").read_text())
    for entry in content["classes"]:
        del entry["color"]
    (root / "classes.json").write_text(json.dumps(content))


def windows_texts(root: Path) -> None:
    for name in ("val.txt", "classes.json"):
        text = (root / name).read_text().replace("\n", "\r\n") + "\r\n"
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.encode())


def turned_by_exif(root: Path) -> None:
    """Stored upside down, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (root / "images" / "val").iterdir():
        image = Image.open(path).rotate(180)
        image.save(path, exif=exif)


def sixteen_bits(root: Path) -> None:
    for path in (root / "images" / "val").iterdir():
        grey = np.array(Image.open(path)).astype(np.uint16)
        Image.fromarray(grey << 8 | 7).save(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (harmless_files, "ignored 3 other files (Thumbs.db, ...)"),
        (no_colours, "5 classes, none empty"),
        (windows_texts, "5 classes, none empty"),
        (turned_by_exif, "3 images"),
        (sixteen_bits, "3 images"),
    ],
)
def test_the_same_data_set_written_otherwise_gives_the_same(
    evaluated: Callable, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    root = write_labelled(tmp_path / "set", images=3)
    if change is sixteen_bits:
        for path in (root / "images" / "val").iterdir():
            Image.open(path).convert("L").save(path)
    code, _, expected = evaluated()
    assert code == 0
    change(root)
    code, error, report = evaluated()
    assert code == 0, error
    assert says in error.splitlines()[0]
    assert report["dynamic"]["miou"] == expected["dynamic"]["miou"]
    assert report["data"]["images"] == 3 and report["data"]["doubt"] is None


@pytest.mark.parametrize("how", ["flag", "file", "text"])
def test_own_classes_in_the_folders_of_ade20k(evaluated: Callable, tmp_path: Path, how: str) -> None:
    root = ade20k_folder(tmp_path / "set", values=(0, 1, 2), size=(56, 72))
    code, error, _ = evaluated()
    assert code == 3 and "2 of 150 classes" in error and "--classes" in error and "has 5" in error
    path = root / "classes.json" if how == "file" else tmp_path / "own"
    path.write_text("\n".join(NAMES) if how == "text" else json.dumps({"classes": NAMES}))
    code, error, report = evaluated(*(() if how == "file" else ("--classes", "own")))
    assert code == 0, error
    assert f"classes of {path.name}; 2 images; 3 of 5 classes, empty: class 3, class 4" in error
    assert report["data"]["empty"] == ["class 3", "class 4"]


def test_own_folders_take_their_classes_from_the_flag_too(evaluated: Callable, tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "set", images=2)
    (root / "classes.json").rename(tmp_path / "own.json")
    code, error, _ = evaluated()
    assert code == 3 and "set/classes.json: missing" in error and "--classes" in error
    code, error, report = evaluated("--classes", "own.json")
    assert code == 0, error
    assert report["data"]["layout"].endswith("classes of own.json") and report["data"]["void"] > 0


def test_the_next_command_keeps_the_classes(
    evaluated: Callable, tiny_bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    ade20k_folder(tmp_path / "set", values=(0, 1, 2), size=(56, 72))
    (tmp_path / "my classes").write_text("\n".join(NAMES))
    assert _run(_application(), ["eval", str(tiny_bundle_path), "set", "--classes", "my classes"]) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("next: ")]
    assert " set --split val --classes 'my classes' --controls" in line


def test_a_mask_of_0_and_255_is_remarked_on(evaluated: Callable, tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "set", images=1)
    (root / "classes.json").write_text(json.dumps({"classes": NAMES}))
    mask = np.zeros((60, 80), np.uint8)
    mask[:30] = 255
    Image.fromarray(mask).save(root / "labels" / "val" / "drive_000.png")
    code, error, report = evaluated()
    assert code == 0, error
    assert "void 50.0% (value 255)" in error
    assert "pixel value 255 was taken as void, and class 'class 1' has no pixel" in error
    assert report["data"]["void"] == 0.5
    assert evaluated("--quiet")[1] == ""


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def lying_by_exif(path: Path) -> None:
    """Stored turned by a quarter, with the note that says so; the label is as it was."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: broken_link(root / "images/val/drive_001.png"), ("drive_001.png", "a link to nothing")),
        (lambda root: broken_link(root / "labels/val/drive_001.png"), ("drive_001.png", "a link to nothing")),
        (lambda root: (root / "val.txt").write_text("drive_000\n", "utf-16"), ("val.txt", "UTF-16")),
        (lambda root: (root / "classes.json").write_text("{}", "utf-16"), ("classes.json", "UTF-16")),
        (lambda root: (root / "labels/val/drive_001.png").unlink(), ("drive_001.png", "missing label")),
        (
            lambda root: (root / "labels/val/drive_001.png").rename(root / "labels/val/drive_001.gif"),
            ("missing label", "drive_001.gif is not read", "save it as PNG"),
        ),
        (
            lambda root: (root / "images/val/drive_001.png").rename(root / "images/val/drive_001.npy"),
            ("no image for 'drive_001'", "drive_001.npy is not read", "save it as PNG"),
        ),
        (lambda root: lying_by_exif(root / "images/val/drive_001.png"), ("drive_001.png", "EXIF has turned")),
    ],
    ids=["image", "label", "list", "classes", "missing", "other label", "other image", "turned"],
)
def test_faults_are_named(evaluated: Callable, tmp_path: Path, harm: Callable[[Path], None], words) -> None:
    harm(write_labelled(tmp_path / "set", images=3))
    code, error, report = evaluated()
    assert code == 3 and not report
    assert all(word in error for word in words), error


@pytest.mark.parametrize("labelled", [True, False])
def test_calibrate_finds_the_last_fault_before_the_search(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, labelled: bool
) -> None:
    root = write_labelled(tmp_path / "set", images=6)
    broken_link(root / "images" / "val" / "drive_005.png")
    (root / "images" / "val" / "Thumbs.db").write_bytes(b"x")
    monkeypatch.setattr("dovit_deploy.runtime.session.Session.__init__", lambda *_, **__: pytest.fail("searched"))
    flags = ["--flops", "0.1"] if labelled else ["--max-disagree", "0.5", "--confidence", "0.5"]
    folder = root if labelled else root / "images" / "val"
    assert _run(_application(), ["calibrate", str(bundle_copy), str(folder), *flags]) == 3
    error = capfd.readouterr().err
    assert "drive_005.png" in error and "a link to nothing" in error
    assert ("5 classes, none empty" if labelled else "images without labels; 6 images; ignored 1 other file") in error


def test_a_split_of_rendered_scenes_that_is_not_there(evaluated: Callable) -> None:
    code, error, _ = evaluated("--split", "nosuch", dataset="rendered")
    assert code == 3 and "no split 'nosuch'; splits: train, val, test" in error


@pytest.mark.parametrize("layout", ["ours", "ADE20K"])
def test_a_missing_validation_label_ends_the_training_not_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if layout == "ours":
        write_folder(tmp_path / "set", images=2, splits=("train", "val"))
        missing = tmp_path / "set" / "labels" / "val" / "val_1.png"
    else:
        ade20k_folder(tmp_path / "set", values=(0, 1, 2))
        missing = tmp_path / "set" / "annotations" / "validation" / "ADE_1.png"
    missing.unlink()
    (tmp_path / "r.toml").write_text(
        "steps = 1\n[network]\nwidth = 16\ndepth = 2\nheads = 1\ngates = [1]\nsize = [32, 32]\n"
    )
    code = _run(_application(), ["train", "set", "--config", "r.toml", "-o", "run"])
    error = capfd.readouterr().err
    assert code == 3 and missing.stem in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
