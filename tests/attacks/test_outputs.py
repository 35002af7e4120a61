"""Several runs on one target, and outputs that meet what is not ours, through the real command line."""

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

from tests.attacks.test_exit_codes import image_file, refused
from tests.conftest import Run
from tests.sources.clips import make_clip


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return image_file(tmp_path / "picture.png")


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A verb at work in `folder`."""
    command = [sys.executable, "-m", "dovit_deploy", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Several runs on one target.


@pytest.fixture
def long_run(tiny_bundle_path: Path, tmp_path: Path):
    """A run that has begun to write `out` and `report.json`, and is held there: alive, with its locks."""
    make_clip(tmp_path / "long.mp4", count=5000, size=(240, 320))
    options = ("-o", "out", "--json", "report.json", "--threads", 1, "--engine", "onnxruntime")
    process = started(tmp_path, "run", "long.mp4", "--bundle", tiny_bundle_path, *options)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("out.*.partial/frames.jsonl")):
        time.sleep(0.05)
    # Stopped, not only slow: how long the other verbs take does not matter then.
    process.send_signal(signal.SIGSTOP)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_every_verb_refuses_what_another_run_writes(
    long_run: subprocess.Popen[str], dovit: Run, bundle_copy: Path, image: Path, tmp_path: Path
) -> None:
    for more in ((), ("--overwrite",)):
        refused(dovit("run", image, "--bundle", bundle_copy, "-o", "out", *more), 2, "out is in use", "-o")
    refused(dovit("train", "rendered", "-o", "out"), 2, "out is in use")
    for verb in (
        ("run", image, "--bundle", bundle_copy, "-o", "b"),
        ("bench", bundle_copy),
        ("eval", bundle_copy, "rendered"),
        ("inspect", bundle_copy),
        ("export", bundle_copy, "-o", "b.dovit"),
        ("calibrate", bundle_copy, "rendered", "--flops", 0.1),
        ("build", bundle_copy),
        ("train", "rendered", "-o", "b"),
        ("doctor",),
        ("cache", "ls"),
    ):
        refused(dovit(*verb, "--json", "report.json"), 2, "report.json is in use", "--json")
    # Killed, it leaves its folder to the next run of the same target.
    long_run.send_signal(signal.SIGKILL)
    long_run.wait()
    assert list(tmp_path.glob("out.*.partial"))
    assert dovit("run", image, "--bundle", bundle_copy, "-o", "out").returncode == 0
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def test_runs_side_by_side_get_default_names_of_their_own(tiny_bundle_path: Path, image: Path, tmp_path: Path) -> None:
    arguments = ("run", image.name, "--bundle", tiny_bundle_path, "--threads", 1, "--quiet")
    processes = [started(tmp_path, *arguments) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    names = {"picture", "picture-2", "picture-3", "picture-4"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    for name in names:
        assert json.loads((tmp_path / "runs" / name / "summary.json").read_text())["frames"] == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_several_runs_on_one_name_each_is_whole_or_refused(
    tiny_bundle_path: Path, image: Path, tmp_path: Path, overwrite: bool, dovit: Run
) -> None:
    more = ("--overwrite",) if overwrite else ()
    arguments = (
        "run",
        image.name,
        "--bundle",
        tiny_bundle_path,
        "-o",
        "out",
        "--json",
        "x.json",
        "--threads",
        1,
        *more,
    )
    if overwrite:
        assert dovit(*arguments).returncode == 0
    processes = [started(tmp_path, *arguments) for _ in range(4)]
    codes = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert process.returncode == 0 or (process.returncode == 2 and errors.startswith("error: ")), errors
    assert 0 in codes and (overwrite or codes.count(0) == 1)
    assert {path.name for path in tmp_path.iterdir()} == {image.name, "out", "x.json"}
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_bundles_being_written_are_not_written_twice(dovit: Run, bundle_copy: Path, tmp_path: Path) -> None:
    from dovit_deploy.claims import claimed

    # As an export, a calibration or a copying build holds them.
    with claimed(bundle_copy), claimed(tmp_path / "new.dovit"):
        refused(dovit("calibrate", bundle_copy, "rendered", "--flops", 0.1), 2, "in use")
        refused(dovit("calibrate", bundle_copy, "rendered", "--flops", 0.1, "-o", "new.dovit"), 2, "in use")
        refused(dovit("export", bundle_copy, "-o", "new.dovit"), 2, "in use")
        refused(dovit("build", bundle_copy, "--into-bundle"), 2, "in use")


# Only what is ours is replaced.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), ("notes.txt",)),
        (lambda out: (out / "masks" / "extra.png").write_text("mine"), ("masks/extra.png",)),
        (lambda out: (out / "masks" / "deep").mkdir(), ("masks/deep",)),
        (lambda out: (out / "overlay.mp4").symlink_to("/dev/null"), ("overlay.mp4",)),
        (lambda out: (out / "summary.json").unlink(), ("summary.json",)),
        (lambda out: (out / "summary.json").write_text('{"frames": 3}'), ("summary.json",)),
        (lambda out: (out / "summary.json").write_text("[" * 100000), ("summary.json",)),
        (lambda out: (out / "summary.json").write_text("[]"), ("summary.json",)),
    ],
)
def test_a_run_with_anything_of_the_user_in_it_is_kept(
    dovit: Run, tiny_bundle_path: Path, image: Path, tmp_path: Path, make, words: tuple[str, ...]
) -> None:
    arguments = ("run", image, "--bundle", tiny_bundle_path, "-o", "out", "--save", "masks")
    assert dovit(*arguments).returncode == 0
    make(tmp_path / "out")
    before = contents(tmp_path / "out")
    refused(dovit(*arguments, "--overwrite"), 2, "out is not replaced", *words)
    assert contents(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {image.name, "out"}


def test_run_replaces_no_bundle_no_file_and_no_empty_folder(
    dovit: Run, bundle_copy: Path, tiny_bundle_path: Path, image: Path, tmp_path: Path
) -> None:
    before = contents(bundle_copy)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for target in (bundle_copy, "file", "empty"):
        refused(dovit("run", image, "--bundle", tiny_bundle_path, "-o", target, "--overwrite"), 2, "is not replaced")
    for target in (bundle_copy, bundle_copy / "new", tmp_path, ".."):
        refused(dovit("run", image, "--bundle", bundle_copy, "-o", target, "--overwrite"), 2, "choose another")
    assert contents(bundle_copy) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_export_replaces_a_bundle_alone(dovit: Run, bundle_copy: Path, dense_bundle_path: Path, tmp_path: Path) -> None:
    arguments = ("export", dense_bundle_path, "--overwrite", "-o")
    photos = tmp_path / "photos.dovit"
    photos.mkdir()
    (photos / "manifest.json").write_text('{"name": "a web page"}')
    refused(dovit(*arguments, photos), 2, "photos.dovit is not replaced", "manifest.json")
    (bundle_copy / "notes.txt").write_text("mine")
    refused(dovit(*arguments, bundle_copy), 2, "is not replaced", "notes.txt")
    refused(dovit("export", bundle_copy, "--overwrite", "-o", bundle_copy), 2, "input")
    refused(dovit(*arguments, bundle_copy / "in.dovit"), 2, "lies in the bundle")
    (bundle_copy / "notes.txt").unlink()
    result = dovit(*arguments, bundle_copy)
    assert result.returncode == 0, result.stderr
    assert dovit("inspect", bundle_copy).returncode == 0
    for name in ("classes", "config"):
        # An output that holds one of the other inputs.
        (tmp_path / "x.dovit").mkdir(exist_ok=True)
        file = tmp_path / "x.dovit" / name
        file.write_text("{}")
        refused(dovit("export", dense_bundle_path, f"--{name}", file, "-o", "x.dovit", "--overwrite"), 2, "input")


# Reports.


def test_a_report_goes_through_a_link_and_into_a_device(dovit: Run, bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    (tmp_path / "real.json.partial").symlink_to("victim")
    assert dovit("inspect", bundle_copy, "--json", "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())
    assert not (tmp_path / "victim").exists()
    result = dovit("inspect", bundle_copy, "--json", "/dev/stdout")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("{")
    assert dovit("inspect", bundle_copy, "--json", os.devnull).returncode == 0
    assert Path(os.devnull).is_char_device()
    with (tmp_path / "printed").open("w") as printed:
        command = [sys.executable, "-m", "dovit_deploy", "inspect", bundle_copy, "--json", "/dev/stdout"]
        subprocess.run(command, stdout=printed, check=True)
    text = (tmp_path / "printed").read_text()
    _, end = json.JSONDecoder().raw_decode(text)
    # The report is whole, and what was printed after it is there as well.
    assert text[end:].strip()


def test_a_report_is_no_input_and_lies_in_none(dovit: Run, bundle_copy: Path, image: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(image, images / "a.png")
    (tmp_path / "hard.png").hardlink_to(images / "a.png")
    before = contents(tmp_path)
    run = ("run", "images", "--bundle", bundle_copy, "-o", "out", "--json")
    for target in (images / "a.png", bundle_copy / "manifest.json", bundle_copy / "new.json", "out"):
        refused(dovit(*run, target), 2, "--json")
    single = ("run", "images/a.png", "--bundle", bundle_copy, "-o", "out", "--json", "hard.png")
    refused(dovit(*single), 2, "--json")
    for verb in (("inspect",), ("bench",), ("build",)):
        refused(dovit(*verb, bundle_copy, "--json", bundle_copy / "manifest.json"), 2, "--json")
    for verb in (("eval", bundle_copy, images), ("calibrate", bundle_copy, images, "--flops", 0.1)):
        refused(dovit(*verb, "--json", images / "a.png"), 2, "--json")
    refused(dovit("train", images, "--json", images / "a.png"), 2, "--json")
    # Inputs that no path names: behind a glob, and behind a link in a folder.
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b.png").symlink_to(images / "a.png")
    before = contents(tmp_path)
    for source in ("images/*.png", "linked"):
        refused(dovit("run", source, *run[2:], images / "a.png"), 2, "--json", "no JSON")
    refused(dovit("bench", bundle_copy, "--frames", "images/*.png", "--json", images / "a.png"), 2, "no JSON")
    assert contents(tmp_path) == before
