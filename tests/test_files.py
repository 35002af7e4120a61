"""Output folders appear whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.files import file_written_aside, free_path, partial_path, write_text, written_aside


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out"
    with written_aside(target, overwrite=False) as folder:
        (folder / "x").write_text("x")
        assert not target.exists()
    assert (target / "x").read_text() == "x"
    assert not partial_path(target).exists()


def test_a_failure_leaves_nothing_and_keeps_what_was(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ValueError, match="boom"), written_aside(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        raise ValueError("boom")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_overwriting_replaces_all_of_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with written_aside(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"), written_aside(tmp_path, overwrite=False):
        pass


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    target = tmp_path / "out"
    partial_path(target).mkdir()
    (partial_path(target) / "half").write_text("half")
    with written_aside(target, overwrite=False):
        pass
    assert list(target.iterdir()) == []


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"), written_aside(tmp_path / "file" / "out", overwrite=False):
        pass


def test_free_paths_are_numbered(tmp_path: Path) -> None:
    assert free_path(tmp_path / "x") == tmp_path / "x"
    (tmp_path / "x").mkdir()
    (tmp_path / "x-2").mkdir()
    assert free_path(tmp_path / "x") == tmp_path / "x-3"


def test_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", "1")
    write_text(tmp_path / "x.json", "2")
    assert (tmp_path / "x.json").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one_alone(tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    target.write_text("old")
    with pytest.raises(ValueError, match="boom"), file_written_aside(target) as aside:
        aside.write_text("half")
        raise ValueError("boom")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_link_stays_one_and_the_file_that_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "x.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    assert [path.name for path in real.parent.iterdir()] == ["x.json"]


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert read == ["text"] and pipe.is_fifo()
