"""`dovit train` through the real command line: runs, kills, resumptions, faults."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.cli import _application, _run
from dovit_deploy.train import job
from dovit_scenes.dataset import write_dataset
from tests.train.tiny_folder import write_folder

NETWORK = "[network]\nwidth = 16\ndepth = 4\nheads = 2\nhead_channels = 8\ngate_channels = 8\n"
RECIPE = "steps = 6\nvalidations = 2\nprecision = 'fp32'\nlicense = 'made of rectangles'\n"
FILES = {"checkpoint", "curve.json", "log.jsonl", "state.pt", "train.json", "training.png"}


@pytest.fixture
def recipe(tmp_path):
    return written(tmp_path, RECIPE + NETWORK)


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", images=4, size=(48, 64), splits=("train", "val"))


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def train(*arguments: object) -> int:
    return _run(_application(), ["train", *map(str, arguments)])


def refused(capsys, code: int, words: str, *arguments: object) -> None:
    """The exit code, one line of error with the words in it."""
    capsys.readouterr()
    assert train(*arguments, "--quiet") == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) <= 2, errors
    assert errors[0].startswith("error: ")
    assert words in " ".join(errors)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in row]


def test_the_checkpoint_is_there_before_thresholds_are_measured(tmp_path, root, recipe, monkeypatch, capsys):
    run = tmp_path / "run"
    seen = []

    def interrupted(model, data, *, advance, **_given):
        seen.append(checkpoint_from_path(run / "checkpoint").thresholds)
        signal.raise_signal(signal.SIGINT)
        advance(1, 2)

    with monkeypatch.context() as patched:
        patched.setattr(job, "threshold_curve", interrupted)
        assert train(root, "--config", recipe, "-o", run, "--quiet") == 130
    errors = capsys.readouterr().err
    assert "thresholds were measured; " in errors and "--resume measures them" in errors
    assert seen == [(0.95,) * 3]
    assert checkpoint_from_path(run / "checkpoint").thresholds == (0.95,) * 3
    # What is missing is measured, and nothing is trained again.
    steps = len(losses(run))
    assert train(root, "--config", recipe, "-o", run, "--resume", "--quiet") == 0
    assert len(losses(run)) == steps
    assert {path.name for path in run.iterdir()} >= {"curve.json", "checkpoint"}


def test_a_run_on_rendered_scenes_from_recipe_to_checkpoint(dovit, tmp_path):
    root = tmp_path / "streets"
    write_dataset(root, {"train": 2, "val": 1}, seed=3, size=(48, 64))
    recipe = written(tmp_path, "steps = 4\nscenes = 2\npretrain = 0.5\nrendered = 0.5\nworkers = 1\n" + NETWORK)
    result = dovit("train", root, "--config", recipe, "-o", "run", "--seed", 3, "--json", "report.json")
    assert result.returncode == 0, result.stderr
    assert "4 steps" in result.stdout
    assert "next: dovit export run/checkpoint" in result.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == FILES | {"scenes"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["steps"], report["seed"], report["images"]) == (4, 3, 2)
    assert [row["threshold"] for row in report["curve"]][:2] == [None, 0.0]
    made = checkpoint_from_path(run / "checkpoint")
    assert made.spec.size == (48, 64)
    assert [entry.name for entry in made.classes][:2] == ["sky", "building"]
    assert made.thresholds == (report["threshold"],) * 3
    saved = json.loads((run / "checkpoint" / "train.json").read_text())
    assert saved["recipe"]["pretrain"] == 0.5
    assert saved["config"]["seed"] == 3
    with Image.open(run / "training.png") as plot:
        assert plot.width > 500


def test_rendered_is_a_data_set(tmp_path, capsys):
    recipe = written(tmp_path, "steps = 1\nscenes = 1\n" + NETWORK + "size = [32, 48]\n")
    assert train("rendered", "--config", recipe, "-o", tmp_path / "run", "--quiet") == 0
    assert json.loads((tmp_path / "run" / "train.json").read_text())["data"]["images"] == 0
    assert train("rendered", "-o", tmp_path / "run", "--resume", "--quiet") == 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path, root):
    recipe = written(tmp_path, "steps = 60\nsave_seconds = 0.01\nvalidations = 2\nprecision = 'fp32'\n" + NETWORK)
    assert train(root, "--config", recipe, "-o", tmp_path / "straight", "--quiet") == 0
    command = [sys.executable, "-m", "dovit_deploy", "train", str(root), "--config", str(recipe), "-o", "killed"]
    process = subprocess.Popen([*command, "--quiet"], cwd=tmp_path)
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") > 12):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "killed" / "checkpoint").exists()
    assert train(root, "-o", tmp_path / "killed", "--resume", "--quiet") == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    weights = [tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_interrupted_it_saves_and_leaves_with_130(tmp_path, root):
    recipe = written(tmp_path, "minutes = 5\nvalidations = 0\nprecision = 'fp32'\n" + NETWORK)
    command = [sys.executable, "-m", "dovit_deploy", "train", str(root), "--config", str(recipe), "-o", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not log.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command with --resume goes on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "state.pt").is_file()


def test_started_from_its_own_checkpoint(tmp_path, root, recipe, capsys):
    assert train(root, "--config", recipe, "-o", tmp_path / "first", "--quiet") == 0
    made = tmp_path / "first" / "checkpoint"
    second = written(tmp_path, RECIPE + "distillation = {teacher = 'init'}\npassing = {mode = 'annealed', share = 1}\n")
    assert train(root, "--config", second, "--init", made, "-o", tmp_path / "second", "--quiet") == 0
    record = json.loads((tmp_path / "second" / "train.json").read_text())
    assert record["init"]["source"] == "checkpoint"
    assert record["config"]["spec"] == json.loads((tmp_path / "first" / "train.json").read_text())["config"]["spec"]
    rows = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert all("distillation" in row for row in rows if "loss" in row)
    # Trained weights start where they ended.
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0]


def test_what_is_wrong_with_the_call_is_said_and_makes_no_run(tmp_path, root, recipe, capsys):
    run = tmp_path / "run"
    refused(capsys, 2, "above 0", root, "-o", run, "--minutes", "0")
    refused(capsys, 2, "name it with -o", root, "--resume")
    refused(capsys, 2, "--json", root, "-o", run, "--json", tmp_path / "absent" / "x.json")
    refused(capsys, 3, "no run to resume", root, "-o", run, "--resume")
    refused(capsys, 3, "no checkpoint at", root, "-o", run, "--init", tmp_path / "absent")
    refused(capsys, 3, "no such data set", tmp_path / "absent", "-o", run)
    refused(capsys, 3, "there is no teacher", root, "-o", run, "--config", written(tmp_path, TEACHER))
    refused(capsys, 3, "cannot be mixed", root, "-o", run, "--config", written(tmp_path, "rendered = 0.5\n" + NETWORK))
    uneven = written(tmp_path, NETWORK.replace("heads = 2", "heads = 3"))
    refused(capsys, 3, "width 16 is not", root, "-o", run, "--config", uneven)
    assert not run.exists()


TEACHER = "distillation = {teacher = 'init'}\n" + NETWORK


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("train.txt", "", "train.txt"),
        ("labels/train/train_3.png", Image.new("L", (9, 9)), "train_3.png: 9x9 pixels"),
        ("labels/val/val_3.png", Image.new("L", (64, 48), 7), "val_3.png: pixel value 7"),
        ("images/train/train_3.png", "no image", "train_3.png: cannot be decoded"),
        ("images/val/val_1.png", None, "no image for 'val_1'"),
    ],
    ids=["empty", "label of another size", "id out of range", "unreadable", "missing in val"],
)
def test_faults_of_the_data_set_are_found_before_the_first_step(tmp_path, root, recipe, capsys, path, content, words):
    if content is None:
        (root / path).unlink()
    elif isinstance(content, str):
        (root / path).write_text(content)
    else:
        content.save(root / path)
    refused(capsys, 3, words, root, "--config", recipe, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_classes_another_recipe_and_another_data_set_are_refused(tmp_path, root, recipe, capsys):
    run = tmp_path / "run"
    assert train(root, "--config", recipe, "-o", run, "--quiet") == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(capsys, 2, "or go on with it: --resume", root, "--config", recipe, "-o", run)
    (run / "checkpoint" / "notes.txt").write_text("mine")
    refused(capsys, 2, "notes.txt", root, "-o", run, "--resume")
    (run / "checkpoint" / "notes.txt").unlink()
    refused(capsys, 2, "seed is 0 in the run and 4 is given", root, "-o", run, "--resume", "--seed", 4)
    refused(capsys, 2, "minutes is None", root, "-o", run, "--resume", "--minutes", 4)
    other = written(tmp_path, RECIPE + NETWORK + "stem = 'patch'\n")
    refused(capsys, 2, "stem is conv in the run and patch is given", root, "-o", run, "--resume", "--config", other)
    refused(capsys, 2, "random weights", root, "-o", run, "--resume", "--init", run / "checkpoint")
    larger = write_folder(tmp_path / "larger", images=5, size=(48, 64))
    refused(capsys, 3, "has 5 images to train on, the run began with 4", larger, "-o", run, "--resume")
    write_dataset(tmp_path / "streets", {"train": 1}, seed=3, size=(48, 64))
    arguments = ("--init", run / "checkpoint", "-o", tmp_path / "new")
    refused(capsys, 3, "a network of 4 classes, the data set has 11", tmp_path / "streets", *arguments)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_full_disk_at_the_end_keeps_the_run(tmp_path, root, recipe, capsys, monkeypatch):
    run = tmp_path / "run"

    def full(folder, config, state, **rest):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dovit_deploy.train.result.save_checkpoint", full)
        refused(capsys, 5, "cannot write", root, "--config", recipe, "-o", run)
    assert not (run / "checkpoint").exists()
    assert train(root, "-o", run, "--resume", "--quiet") == 0
    assert len(losses(run)) == 6
    assert checkpoint_from_path(run / "checkpoint").license == "made of rectangles"


def test_without_matplotlib_there_is_no_plot_and_a_remark(tmp_path, root, recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert train(root, "--config", recipe, "-o", tmp_path / "run") == 0
    assert "no plot of the run: the package 'matplotlib'" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"training.png"}


def test_without_a_validation_split_it_trains_all_the_same(tmp_path, recipe):
    root = write_folder(tmp_path / "set", images=3, size=(48, 64))
    assert train(root, "--config", recipe, "-o", tmp_path / "run", "--quiet") == 0
    assert checkpoint_from_path(tmp_path / "run" / "checkpoint").thresholds == (0.95,) * 3
    assert not (tmp_path / "run" / "curve.json").exists()


def test_one_drive_can_be_left_out(tmp_path, root):
    recipe = written(tmp_path, "split = 'train:-train_3'\nwatch = 'train:train_3'\n" + RECIPE + NETWORK)
    assert train(root, "--config", recipe, "-o", tmp_path / "run", "--quiet") == 0
    assert json.loads((tmp_path / "run" / "train.json").read_text())["data"]["images"] == 3
