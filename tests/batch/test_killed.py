"""Whatever is killed, full, stopped or changed on the way: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dovit_deploy.batch import driver as driver_module
from dovit_deploy.batch.parts import PartWriter
from dovit_deploy.batch.rows import BatchRow
from dovit_deploy.commands import batch_steps, console
from dovit_deploy.errors import OutputFailed
from dovit_deploy.runtime.session import Session
from tests.batch.conftest import InProcess, assert_like_run, dovit, write_clip

SEGMENTS = ("--segment-seconds", "0.5")


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 24)


@pytest.fixture
def run(clip: Path, tiny_bundle_path: Path, tmp_path: Path) -> Path:
    assert dovit("run", tiny_bundle_path, clip, "-o", tmp_path / "run") == 0
    return tmp_path / "run"


def at_row(number: int, then: object) -> object:
    """Raise or call `then` before that row is computed."""

    def before(row: BatchRow) -> None:
        if row.number == number:
            if isinstance(then, BaseException):
                raise then
            then()

    return before


def test_a_driver_that_is_killed(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, run: Path, tmp_path: Path
) -> None:
    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    cluster.before = at_row(2, Killed())
    with pytest.raises(Killed):
        dovit("batch", tiny_bundle_path, *words)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.batch" / "batch.json").is_file()
    # What a killed worker left of a row is no answer.
    (tmp_path / "out.batch" / "parts" / "000000-000002.dead.0.frames").write_bytes(b"half")
    cluster.before = lambda row: None
    done = cluster.computed.copy()
    assert dovit("batch", tiny_bundle_path, *words) == 2
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert done == ["000000-000000", "000000-000001"]
    assert cluster.computed == [f"000000-{number:06d}" for number in range(5)]
    assert_like_run(tmp_path / "out", run)
    assert not (tmp_path / "out.batch").exists()


def test_a_driver_that_is_killed_while_it_merges(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(session: Session, *given: object, **named: object) -> None:
        raise Killed

    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(driver_module, "run_source", killed)
        dovit("batch", tiny_bundle_path, *words)
    computed = cluster.computed.copy()
    # As if it had been killed between the rename of a result and the note that it counts.
    result = tmp_path / "out.batch" / "results" / "clip"
    result.mkdir()
    (result / "summary.json").write_text("{}")
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert cluster.computed == computed
    assert_like_run(tmp_path / "out", run)


def test_a_worker_that_is_killed_has_written_nothing_that_counts(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = PartWriter.finish

    def killed(self: PartWriter, marker: object) -> None:
        if self._row.endswith("3"):
            raise Killed
        finish(self, marker)

    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PartWriter, "finish", killed)
        dovit("batch", tiny_bundle_path, *words)
    assert len(list((tmp_path / "out.batch" / "parts").glob("000000-000003.*.frames"))) == 1
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert cluster.computed.count("000000-000003") == 2 and len(cluster.computed) == 6
    assert_like_run(tmp_path / "out", run)


def test_a_full_disk_keeps_what_is_done(
    cluster: InProcess,
    tiny_bundle_path: Path,
    clip: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flush = PartWriter.flush

    def full(self: PartWriter) -> tuple[str, ...]:
        if self._row.endswith("1"):
            raise OutputFailed("cannot write it: No space left on device; make room, or write elsewhere")
        return flush(self)

    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    with monkeypatch.context() as patched:
        patched.setattr(PartWriter, "flush", full)
        assert dovit("batch", tiny_bundle_path, *words) == 5
    assert "--resume goes on" in capfd.readouterr().err and not (tmp_path / "out").exists()
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert cluster.computed.count("000000-000000") == 1
    assert_like_run(tmp_path / "out", run)


def test_ctrl_c_ends_in_order(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    cluster.before = at_row(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert dovit("batch", tiny_bundle_path, *words) == 130
    assert "--resume goes on" in capfd.readouterr().err and not (tmp_path / "out").exists()
    cluster.before = lambda row: None
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert_like_run(tmp_path / "out", run)


def test_a_source_that_changes_while_it_is_read(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.before = at_row(2, lambda: write_clip(clip, 24, seed=1))
    assert dovit("batch", tiny_bundle_path, clip, "-o", tmp_path / "out", *SEGMENTS) == 3
    assert "changed while it was read" in capfd.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.batch").exists()


def test_parts_of_another_bundle_or_of_other_settings_are_not_taken(
    cluster: InProcess,
    tiny_bundle_path: Path,
    dense_bundle_path: Path,
    clip: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    cluster.before = at_row(2, Killed())
    with pytest.raises(Killed):
        dovit("batch", tiny_bundle_path, *words)
    capfd.readouterr()
    assert dovit("batch", dense_bundle_path, *words, "--resume") == 2
    assert "another bundle" in capfd.readouterr().err
    assert dovit("batch", tiny_bundle_path, *words, "--resume", "--threshold", "0.5") == 2
    assert "another value of --threshold" in capfd.readouterr().err
    cluster.before = lambda row: None
    # What another version left under the same name is computed anew.
    marker = tmp_path / "out.batch" / "parts" / "000000-000000.json"
    left = json.loads(marker.read_bytes())
    left["origin"]["settings"] = "other"
    marker.write_text(json.dumps(left))
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert cluster.computed.count("000000-000000") == 2 and cluster.computed.count("000000-000001") == 1


def test_parts_of_unlike_machines_are_flagged(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    cluster.before = at_row(2, Killed())
    with pytest.raises(Killed):
        dovit("batch", tiny_bundle_path, *words)
    marker = tmp_path / "out.batch" / "parts" / "000000-000001.json"
    left = json.loads(marker.read_bytes())
    left["origin"]["features"] = ["another"]
    marker.write_text(json.dumps(left))
    cluster.before = lambda row: None
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert "computed with different instruction sets" in capfd.readouterr().err


def test_segments_that_do_not_agree_on_their_common_frame(
    cluster: InProcess, tiny_bundle_path: Path, clip: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (clip, "-o", tmp_path / "out", *SEGMENTS)
    cluster.before = at_row(2, Killed())
    with pytest.raises(Killed):
        dovit("batch", tiny_bundle_path, *words)
    marker = tmp_path / "out.batch" / "parts" / "000000-000001.json"
    left = json.loads(marker.read_bytes())
    left["first"] = "another"
    marker.write_text(json.dumps(left))
    cluster.before = lambda row: None
    assert dovit("batch", tiny_bundle_path, *words, "--resume") == 0
    assert "do not decode their common frame alike" in capfd.readouterr().err
    assert cluster.computed[-1] == "000000-whole"
    assert_like_run(tmp_path / "out", run)


def test_the_rate_is_of_what_is_computed_now(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    @contextmanager
    def progress(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(reach=lambda done, note: notes.append(note))

    monkeypatch.setattr(console, "progress", progress)
    request: Any = SimpleNamespace(quiet=True)
    with batch_steps._progress(request, ()) as advance:
        advance(900, 450.0, True)
        advance(0, 0.0, False)
    assert [note.split("  ") for note in notes] == [["0.0 frames/s", "FLOPs saved 50%"]] * 2
