"""What fails while a verb works: the disk, whoever reads what it prints, and the user's patience."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dovit_deploy import interruption
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.cli import _application, _run
from tests.attacks.test_exit_codes import image_file
from tests.datasets.labelled_folder import write_labelled
from tests.train.tiny_folder import write_folder

RECIPE = (
    "steps = 2\nvalidations = 0\nprecision = 'fp32'\n[network]\nwidth = 16\ndepth = 4\nheads = 2\nhead_channels = 8\n"
)


@pytest.fixture
def workplace(tmp_path: Path, tiny_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with something to work on for every verb of `CALLS`."""
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b", "c"):
        image_file(folder / "images" / f"{name}.png")
    shutil.copytree(tiny_bundle_path, folder / "b.dovit")
    write_labelled(folder / "set", images=4)
    write_folder(folder / "data", images=2, size=(48, 64), splits=("train", "val"))
    (folder / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    # One request follows the next at once here.
    monkeypatch.setattr(interruption, "SAME_REQUEST_S", 0.0)
    return folder


CALLS = {
    "run": ("run", "images", "--bundle", "b.dovit", "-o", "out", "--json", "x.json", "--threads", "1"),
    "export": ("export", "b.dovit", "-o", "new.dovit", "--json", "x.json"),
    "bench": ("bench", "b.dovit", "--frames", "images", "--repeat", "1", "--json", "x.json"),
    "eval": ("eval", "b.dovit", "set", "--threads", "1", "--json", "x.json"),
    "calibrate": ("calibrate", "b.dovit", "set", "--flops", "0.01", "-o", "new.dovit", "--json", "x.json"),
    "train": ("train", "data", "--config", "recipe.toml", "-o", "out", "--json", "x.json"),
    "inspect": ("inspect", "b.dovit", "--json", "x.json"),
    "doctor": ("doctor", "--json", "x.json"),
}


def dovit(*arguments: str) -> int:
    return _run(_application(), list(arguments))


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


Refusing = Callable[[Callable[[Path], bool], int], None]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    """A disk that takes no new content under the paths that are named to it, below everything that writes files."""

    def refuse(wanted: Callable[[Path], bool], number: int) -> None:
        def refused(path: object, mode: str) -> bool:
            return isinstance(path, str | Path) and set(mode) & set("wxa+") != set() and wanted(Path(path))

        plain, make, create = io.open, os.mkdir, os.open

        def opened(path, mode="r", *rest, **named):
            if refused(path, mode):
                raise OSError(number, os.strerror(number), str(path))
            return plain(path, mode, *rest, **named)

        def made(path, *rest, **named):
            if refused(path, "w"):
                raise OSError(number, os.strerror(number), str(path))
            return make(path, *rest, **named)

        def created(path, flags, *rest, **named):
            if flags & os.O_CREAT and refused(path, "w"):
                raise OSError(number, os.strerror(number), str(path))
            return create(path, flags, *rest, **named)

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(os, "mkdir", made)
        monkeypatch.setattr(os, "open", created)

    return refuse


def failed(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    errors = capsys.readouterr().err
    assert code == 5, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: cannot write "), errors
    assert "Traceback" not in errors
    for word in words:
        assert word in last, errors


# The disk.


@pytest.mark.parametrize("verb", ["run", "export", "calibrate", "train"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_folder_that_the_disk_refuses(workplace: Path, refusing: Refusing, capsys, verb: str, number: int) -> None:
    before = entries(workplace)
    target = "new.dovit" if "new.dovit" in CALLS[verb] else "out"
    refusing(lambda path: path.name.startswith(f"{target}."), number)
    failed(capsys, dovit(*CALLS[verb]), os.strerror(number))
    # What the search for thresholds found is reported all the same.
    assert entries(workplace) - before <= {"x.json"}


def test_a_graph_that_the_disk_refuses(workplace: Path, monkeypatch, capsys) -> None:
    def refused(*rest: object, **named: object) -> None:
        # As writing to a file that is open ends: the error names no file.
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    before = entries(workplace)
    monkeypatch.setattr("dovit_deploy.export.pipeline.write_graphs", refused)
    failed(capsys, dovit(*CALLS["export"]), "new.dovit", os.strerror(errno.EDQUOT))
    assert entries(workplace) == before


@pytest.mark.parametrize("verb", ["run", "bench", "eval", "inspect"])
def test_a_report_that_the_disk_refuses(workplace: Path, refusing: Refusing, capsys, verb: str) -> None:
    refusing(lambda path: path.name.startswith("x.json"), errno.EROFS)
    failed(capsys, dovit(*CALLS[verb]), "x.json", os.strerror(errno.EROFS))
    assert not (workplace / "x.json").exists()
    # Before the work.
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("name", ["state.pt", "log.jsonl", "checkpoint", "curve.json", "training.png"])
def test_a_training_that_the_disk_refuses_goes_on_later(workplace: Path, refusing: Refusing, capsys, name) -> None:
    refusing(lambda path: path.name.startswith(name), errno.ENOSPC)
    failed(capsys, dovit(*CALLS["train"]), "--resume")


@pytest.mark.parametrize("part", ["masks/c", "overlay/c"])
def test_a_run_keeps_what_it_did_until_the_disk_was_full(workplace: Path, refusing: Refusing, capsys, part) -> None:
    refusing(lambda path: f".partial/{part}" in path.as_posix(), errno.ENOSPC)
    command = (*CALLS["run"], "--save", "masks,overlay,coco")
    failed(capsys, dovit(*command), f"out/{part}.png", "No space left", "done until then: 2 images, in out")
    coco = json.loads((workplace / "out" / "coco.json").read_text())
    assert [Path(image["file_name"]).name for image in coco["images"]] == ["a.png", "b.png"]
    assert {annotation["image_id"] for annotation in coco["annotations"]} == {1, 2}
    summary = json.loads((workplace / "out" / "summary.json").read_text())
    assert (summary["frames"], summary["interrupted"]) == (2, True)
    assert len((workplace / "out" / "frames.jsonl").read_text().splitlines()) == 2
    for kind in ("masks", "overlay"):
        assert entries(workplace / "out" / kind) == {"a.png", "b.png"}
    # A report lies elsewhere, perhaps on another disk.
    assert json.loads((workplace / "x.json").read_text()) == summary


def test_a_run_whose_page_the_disk_refuses_is_whole_without_it(workplace: Path, refusing: Refusing, capsys) -> None:
    refusing(lambda path: ".partial/report.html" in path.as_posix(), errno.ENOSPC)
    failed(capsys, dovit(*CALLS["run"]), "out/report.html", "No space left", "done until then: 3 images, in out")
    assert json.loads((workplace / "out" / "summary.json").read_text())["frames"] == 3
    assert entries(workplace / "out" / "masks") == {"a.png", "b.png", "c.png"}
    assert "report.html" not in entries(workplace / "out")


def test_a_coco_file_that_the_disk_refuses_costs_nothing_else(workplace: Path, refusing: Refusing, capsys) -> None:
    refusing(lambda path: path.name == "coco.json", errno.ENOSPC)
    failed(capsys, dovit(*CALLS["run"], "--save", "masks,coco"), "out/coco.json", "No space left", "done until then: 3")
    assert entries(workplace / "out") == {"masks", "frames.jsonl", "summary.json"}


def test_a_run_whose_first_frame_the_disk_refuses_leaves_nothing(workplace: Path, refusing: Refusing, capsys) -> None:
    before = entries(workplace)
    refusing(lambda path: ".partial/masks/" in path.as_posix(), errno.ENOSPC)
    failed(capsys, dovit(*CALLS["run"]), "No space left")
    assert entries(workplace) == before


def test_an_unwritable_folder_is_found_before_the_work(workplace: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **rest: not mode & os.W_OK)
    monkeypatch.setattr(Bundle, "open", lambda path: pytest.fail("it was opened"))
    for verb in ("run", "export", "eval", "inspect"):
        failed(capsys, dovit(*CALLS[verb]), "cannot be written")


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_names_as_long_as_a_file_system_takes(workplace: Path, letter: str) -> None:
    long = letter * (250 // len(letter.encode()))
    (workplace / "images" / "a.png").rename(workplace / "images" / f"{long}.png")
    shutil.copy(workplace / "images" / "b.png", workplace / "images" / f"{long}.bmp")
    for more in ((), ("--overwrite",)):
        assert dovit("run", "images", "--bundle", "b.dovit", "-o", long, "--quiet", *more) == 0
    assert len(list((workplace / long / "masks").iterdir())) == 4
    assert dovit("run", f"images/{long}.png", "--bundle", "b.dovit", "--quiet") == 0
    assert dovit("run", f"images/{long}.png", "--bundle", "b.dovit", "--quiet") == 0
    assert {len(os.fsencode(name)) for name in entries(workplace / "runs")} == {250, 252}
    assert dovit("inspect", "b.dovit", "--json", f"{long}.json") == 0


def test_a_name_that_no_file_system_takes(workplace: Path, capsys) -> None:
    failed(capsys, dovit("run", "images", "--bundle", "b.dovit", "-o", "x" * 256), "shorter name")


# Who reads what is printed.


def printed_into(output: object, *arguments: str, errors: object = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dovit_deploy", *arguments]
    return subprocess.run(command, stdout=output, stderr=errors, text=True, timeout=120, check=False)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end for writing of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_reader_that_closes_ends_the_printing_and_not_the_work(workplace: Path, closed_pipe: int) -> None:
    result = printed_into(closed_pipe, *CALLS["run"])
    assert result.returncode == 0, result.stderr
    assert "Broken pipe" not in result.stderr and "Exception ignored" not in result.stderr
    assert json.loads((workplace / "x.json").read_text())["frames"] == 3
    assert printed_into(closed_pipe, "inspect", "b.dovit", "--json", "/dev/stdout").returncode == 0
    # A failure stays one.
    assert printed_into(closed_pipe, "inspect", "absent", errors=closed_pipe).returncode == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_stdout_is_reported_when_the_files_are_there(workplace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = printed_into(full, *CALLS["bench"], "--quiet")
        assert result.returncode == 5
        assert result.stderr == (
            "error: stdout cannot be written (No space left on device); the work is done, and files are complete\n"
        )
        assert json.loads((workplace / "x.json").read_text())["frames"] == 3
        assert printed_into(full, "inspect", "b.dovit", errors=full).returncode == 5
        assert printed_into(full, "--help").returncode == 5


# Interrupts.


def ask(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", [*CALLS])
def test_every_verb_ends_in_order(workplace: Path, monkeypatch, capsys, verb: str, number: signal.Signals) -> None:
    before, handlers = entries(workplace), [signal.getsignal(entry) for entry in interruption.SIGNALS]
    for name in ("bundle.bundle.Bundle.content", "measure.doctor.examination", "train.job.training_images"):
        monkeypatch.setattr(f"dovit_deploy.{name}", lambda *rest, **named: ask(number))
    if verb == "inspect":
        monkeypatch.setattr("dovit_deploy.measure.inspect.contents_of", lambda *rest, **named: ask(number))
    assert dovit(*CALLS[verb]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"
    assert entries(workplace) == before
    assert [signal.getsignal(entry) for entry in interruption.SIGNALS] == handlers


def test_an_interrupt_while_a_folder_is_filled_leaves_none(workplace: Path, monkeypatch, capsys) -> None:
    before = entries(workplace)
    monkeypatch.setattr("dovit_deploy.export.pipeline.write_graphs", lambda *rest, **named: ask(signal.SIGTERM))
    assert dovit(*CALLS["export"]) == 130
    assert entries(workplace) == before


def test_an_interrupt_that_a_library_made_an_error_of_is_one(workplace: Path, monkeypatch, capsys) -> None:
    def hidden(*rest: object) -> None:
        try:
            ask(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(Bundle, "content", hidden)
    assert dovit(*CALLS["eval"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_two_signals_at_once_are_one_request(monkeypatch) -> None:
    monkeypatch.setattr(interruption._Requests, "last", float("-inf"))
    with interruption.stop_requests() as stop:
        ask(signal.SIGTERM)
        ask(signal.SIGTERM)
        assert stop.is_set()
        monkeypatch.setattr(interruption, "SAME_REQUEST_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)


SLOW_IMPORT = "import sys, time; print('importing', file=sys.stderr, flush=True); time.sleep(60)\n"


@pytest.mark.parametrize("start", [["-m", "dovit_deploy"], ["-c", "from dovit_deploy.__main__ import main; main()"]])
def test_an_interrupt_while_it_starts(tmp_path: Path, start: list[str]) -> None:
    # The first package that the verbs import takes a minute here.
    (tmp_path / "typer.py").write_text(SLOW_IMPORT)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, *start, "doctor"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
