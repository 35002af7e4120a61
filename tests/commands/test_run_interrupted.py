"""A folder that several threads work on, ended by signals, a kill, the disk or an error: whole files, rows in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy import interruption
from dovit_deploy.cli import _application, _run
from dovit_deploy.errors import CheckError, OutputFailed
from dovit_deploy.runtime import outputs
from dovit_deploy.runtime.session import Session

IMAGES, THREADS = 40, 3


@pytest.fixture
def words(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that runs a folder into `out`, both in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f"folder/{number:02d}.png")
    monkeypatch.setattr(interruption._Requests, "last", float("-inf"))
    model = ["--bundle", str(tiny_bundle_path), "--engine", "onnxruntime", "--threads", str(THREADS)]
    return ["run", "folder", *model, "-o", "out", "--quiet"]


def signals_after(monkeypatch: pytest.MonkeyPatch, images: int, *numbers: signal.Signals, gap: float = 0.0) -> None:
    """When so many images were predicted, this process gets the signals, `gap` seconds apart."""
    run_one, begun, lock = Session.run_one, [0], threading.Lock()

    def counted(self, pixels, settings):
        with lock:
            begun[0] += 1
            asked = begun[0] == images
        if asked:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(gap)
        return run_one(self, pixels, settings)

    monkeypatch.setattr(Session, "run_one", counted)


def rows_whole(folder: Path, *, kinds: tuple[str, ...] = ("overlay", "masks")) -> int:
    """How many rows there are; they are in order, and of each there are whole images, and of nothing else."""
    rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    for kind in kinds:
        assert sorted(path.stem for path in (folder / kind).iterdir()) == [Path(row["source"]).stem for row in rows]
        assert {loaded(path) for path in (folder / kind).iterdir()} == {(80, 60)}
    return len(rows)


def loaded(path: Path) -> tuple[int, int]:
    """The size of an image that can be read to its end."""
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(words: list[str], monkeypatch, capsys, number: signal.Signals) -> None:
    signals_after(monkeypatch, 10, number)
    assert _run(_application(), [*words, "--save", "overlay,masks,coco"]) == 130
    assert "stopped after" in capsys.readouterr().err
    done = rows_whole(Path("out"))
    coco = json.loads(Path("out/coco.json").read_text())
    assert [image["id"] for image in coco["images"]] == list(range(1, done + 1))
    assert {annotation["image_id"] for annotation in coco["annotations"]} == set(range(1, done + 1))
    # What was begun is finished: at least the ten; and what waited for a worker is not begun.
    assert 10 <= done <= 10 + 2 * THREADS
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["interrupted"], summary["frames"]) == (True, done)
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "out"]
    for thread in threading.enumerate():
        if thread.name.startswith("dovit-w"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("gap", [0.0, 0.003, 0.02, 0.15])
def test_a_second_request_ends_it_at_once_and_leaves_nothing(words: list[str], monkeypatch, capsys, gap: float) -> None:
    monkeypatch.setattr(interruption, "SAME_REQUEST_S", 0.0)
    # Two of one kind at the same moment would come as one.
    signals_after(monkeypatch, 10, signal.SIGINT, signal.SIGTERM, gap=gap)
    assert _run(_application(), words) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"
    assert [path.name for path in Path().iterdir()] == ["folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from dovit_deploy.cli import _application, _run
from dovit_deploy.runtime.outputs import RunReport
kind, name, left = RunReport if sys.argv[1] == "add" else Path, sys.argv[1], int(sys.argv[2])
method = getattr(kind, name)
def counted(self, *given):
    global left
    left -= kind is RunReport or ".png" in self.name
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *given)
setattr(kind, name, counted)
_run(_application(), sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("moment", "number", "rows", "images"),
    # Before the eleventh row; before the mask of the eleventh image gets its name, which is the second of two files.
    [("add", 11, 10, 11), ("replace", 22, 10, 10)],
)
def test_a_kill_leaves_whole_files_aside_and_the_next_run_tidies_up(
    words: list[str], moment: str, number: int, rows: int, images: int
) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, moment, str(number), *words], check=False, timeout=120)
    assert child.returncode == -signal.SIGKILL and not Path("out").exists()
    (partial,) = Path().glob("out.*.partial")
    written = [json.loads(line)["index"] for line in (partial / "frames.jsonl").read_text().splitlines()]
    assert written == list(range(rows))
    whole = sorted((partial / "masks").glob("??.png"))
    assert [path.stem for path in whole] == [f"{index:02d}" for index in range(images)]
    assert {loaded(path) for path in whole} == {(80, 60)}
    assert _run(_application(), words) == 0
    assert rows_whole(Path("out")) == IMAGES
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "out"]


def test_a_disk_that_is_full_keeps_the_rows_that_are_whole(words: list[str], monkeypatch, capsys) -> None:
    write_image, written = outputs.write_image, []

    def filling(path: Path, content: bytes) -> None:
        written.append(path)
        # Overlay and mask of ten images, and one of the eleventh.
        if len(written) > 21:
            raise OutputFailed(f"{path} cannot be written (No space left on device)")
        write_image(path, content)

    monkeypatch.setattr(outputs, "write_image", filling)
    assert _run(_application(), words) == 5
    assert "No space left on device" in capsys.readouterr().err
    assert rows_whole(Path("out")) == 10
    assert json.loads(Path("out/summary.json").read_text())["frames"] == 10


def test_an_error_of_one_worker_ends_it_without_a_trace(words: list[str], monkeypatch, capsys) -> None:
    run_one, begun = Session.run_one, []

    def failing(self, pixels, settings):
        begun.append(None)
        if len(begun) == 10:
            raise CheckError("the answer is not finite")
        return run_one(self, pixels, settings)

    monkeypatch.setattr(Session, "run_one", failing)
    assert _run(_application(), words) == 4
    assert "error: the answer is not finite" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["folder"]
