"""Clips and data sets as files, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from dovit_scenes import PALETTE, packages, render, street_frames, world_from_seed
from dovit_scenes.__main__ import main
from dovit_scenes.clip import write_clip
from dovit_scenes.dataset import scene_sample
from dovit_scenes.errors import SceneArgumentError, SceneEnvironmentError
from tests.paths import ROOT
from tests.sources.clips import SilentOpencv

ARGUMENTS = ["--frames", "5", "--seed", "3", "--size", "160x96", "--fps", "15", "--quiet"]


def read_frames(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1])


@pytest.mark.parametrize("with_pyav", [True, False])
def test_a_clip_holds_the_rendered_frames(tmp_path, monkeypatch, with_pyav):
    if not with_pyav:
        monkeypatch.setattr(packages, "pyav", lambda: None)
    path = tmp_path / "street.mp4"
    assert main([str(path), *ARGUMENTS]) == 0
    frames, fps = read_frames(path)
    assert len(frames) == 5
    assert fps == pytest.approx(15.0)
    expected = render(world_from_seed(3), 4, size=(96, 160)).rgb
    assert frames[4].shape == expected.shape
    assert np.abs(frames[4].astype(int) - expected).mean() < 12
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_clip_is_kept_without_overwrite(tmp_path, capsys):
    path = tmp_path / "street.mp4"
    path.write_bytes(b"mine")
    assert main([str(path), *ARGUMENTS]) == 2
    assert path.read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(path), *ARGUMENTS, "--overwrite"]) == 0
    assert len(read_frames(path)[0]) == 5


def test_an_interrupted_clip_leaves_nothing(tmp_path):
    def broken():
        yield from street_frames(2, seed=1, size=(96, 160))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "a.mp4", broken(), size=(96, 160), fps=Fraction(15))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("street.avi", [], ".mp4"),
        ("none/street.mp4", [], "no folder"),
        ("street.mp4", ["--size", "161x96"], "even"),
        ("street.mp4", ["--size", "big"], "WIDTHxHEIGHT"),
        ("street.mp4", ["--density", "2"], "density"),
        ("street.mp4", ["--frames", "0"], "at least one frame"),
        ("street.mp4", ["--images", "3"], "folder"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_reason(tmp_path, capsys, name, changes, message):
    assert main([str(tmp_path / name), *ARGUMENTS, *changes]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(
            ("--fps", value)
            for value in ("1/0", "1e300", "1" + "0" * 30, "1001", "0", "nan", "1e999999999", "x" * 5000)
        ),
        *(("--size", value) for value in ("²x64", "9" * 5000 + "x2", "99998x99998", "\x1b[31mx")),
        *(("--seed", value) for value in ("-1", "\x1b[31m", "9" * 5000)),
        *(("--frames", value) for value in ("-1", "1e3", "nan")),
        ("--no\x1b[31m", "\n"),
    ],
)
@pytest.mark.parametrize("images", [False, True], ids=["clip", "data set"])
def test_odd_values_are_refused_in_a_line(tmp_path, capsys, images, flag, value):
    target = [str(tmp_path / "set"), "--images", "1"] if images else [str(tmp_path / "street.mp4")]
    if images and flag in ("--frames", "--fps") and value in ("-1", "0", "1001"):
        pytest.skip("a number that a data set does not use")
    try:
        code = main([*target, "--size", "64x48", "--quiet", f"{flag}={value}"])
    except SystemExit as error:
        code = error.code
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and "error: " in last and last.isprintable() and len(last) < 700
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"], ids=["long", "deep", "NUL"])
@pytest.mark.parametrize("ending", [[".mp4"], ["", "--images", "1"]], ids=["clip", "data set"])
def test_a_name_that_the_file_system_refuses(tmp_path, monkeypatch, capsys, name, ending):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([name + ending[0], *ending[1:], "--size", "64x48", "--quiet"])
    except SystemExit as error:
        code = error.code
    last = capsys.readouterr().err.splitlines()[-1]
    assert code in (2, 5) and "error: " in last and last.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\x1b[31mred.mp4", "a\nb.mp4", "\udce4.mp4", "\u202egpj.mp4"])
def test_names_are_printed_escaped(tmp_path, monkeypatch, capsys, name):
    def written(path, *_, **__):
        path.write_bytes(b"")

    monkeypatch.setattr("dovit_scenes.__main__.write_clip", written)
    assert main([str(tmp_path / name), "--quiet"]) == 0
    assert (tmp_path / name).is_file()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    monkeypatch.undo()
    assert main([str(tmp_path / name), *ARGUMENTS]) == 2
    out, err = capsys.readouterr()
    assert all(len(text.splitlines()) == 1 and text.strip().isprintable() for text in (out, err))


def test_a_data_set_has_camvids_layout(tmp_path):
    root = tmp_path / "scenes"
    assert main([str(root), "--images", "2", "--val", "1", "--size", "96x64", "--seed", "5", "--quiet"]) == 0
    assert sorted(p.name for p in root.iterdir()) == ["classes.json", "images", "labels", "train.txt", "val.txt"]
    number = 0
    for split, count in (("train", 2), ("val", 1)):
        stems = (root / f"{split}.txt").read_text().split()
        assert len(stems) == count
        for stem in stems:
            image = cv2.imread(str(root / "images" / split / f"{stem}.png"))
            labels = cv2.imread(str(root / "labels" / split / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
            sample = scene_sample(5, number, size=(64, 96))
            assert np.array_equal(image[..., ::-1], sample.rgb)
            assert np.array_equal(labels, sample.labels)
            number += 1
    classes = json.loads((root / "classes.json").read_text())
    assert classes["ignore"] == 11
    assert [entry["id"] for entry in classes["classes"]] == list(range(12))
    assert [entry["color"] for entry in classes["classes"][:11]] == PALETTE.tolist()


def test_an_existing_folder_is_never_written_into(tmp_path, capsys):
    (tmp_path / "scenes").mkdir()
    assert main([str(tmp_path / "scenes"), "--images", "1", "--quiet"]) == 2
    assert "exists" in capsys.readouterr().err
    assert list((tmp_path / "scenes").iterdir()) == []


def test_images_of_one_data_set_are_of_different_streets():
    first, second = (scene_sample(5, number, size=(64, 96)) for number in (0, 1))
    assert (first.labels != second.labels).mean() > 0.05


def test_without_opencv_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SceneEnvironmentError, match="pip install opencv-python-headless"):
        render(world_from_seed(0), 0, size=(64, 96))
    assert main([str(tmp_path / "street.mp4"), *ARGUMENTS]) == 5
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_opencv_did_not_write_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "pyav", lambda: None)
    monkeypatch.setattr(packages, "opencv", SilentOpencv)
    frames = street_frames(2, seed=7, size=(64, 96))
    with pytest.raises(SceneEnvironmentError, match="wrote 0 of 2 frames"):
        write_clip(tmp_path / "street.mp4", frames, size=(64, 96), fps=Fraction(25))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["street.mp4", "--frames", "many"], 2)])
def test_the_module_runs_as_a_program(tmp_path, arguments, code):
    command = [sys.executable, "-m", "dovit_scenes", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == code
    assert "python -m dovit_scenes" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_the_message_of_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(SceneArgumentError) as caught:
        write_clip(tmp_path / "no" / "a.mp4", [], size=(96, 160), fps=Fraction(15))
    assert len(str(caught.value).splitlines()) == 1
