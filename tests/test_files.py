"""Output folders and files appear whole or not at all, and only what is ours is replaced."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dovit_deploy import files
from dovit_deploy.bundle.class_files import classes_from_file
from dovit_deploy.claims import claimed
from dovit_deploy.documents import read_text
from dovit_deploy.errors import InputError, OutputFailed, UsageError
from dovit_deploy.files import (
    copy_folder,
    file_written_aside,
    first_foreign,
    refuse_inputs,
    refuse_unwritable,
    reported_writes,
    write_text,
    written_aside,
)


def ours(folder: Path) -> str | None:
    """A mark: everything but `foreign.txt` is ours."""
    return first_foreign(folder, lambda path: path != "foreign.txt")


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out"
    with written_aside(target, overwrite=False, mark=ours) as folder:
        (folder / "x").write_text("x")
        assert not target.exists()
    assert (target / "x").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_keeps_what_was(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ValueError, match="boom"), written_aside(target, overwrite=True, mark=ours) as folder:
        (folder / "new").write_text("new")
        raise ValueError("boom")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["old"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_replaces_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    if not exchange:
        monkeypatch.setattr(files, "_renamed", lambda first, second, flag: False)
    with written_aside(target, overwrite=True, mark=ours) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "old").write_text("old")
    link.symlink_to(real)
    with written_aside(link, overwrite=True, mark=ours) as folder:
        (folder / "new").write_text("new")
    assert link.is_symlink()
    assert [path.name for path in real.iterdir()] == ["new"]


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"), written_aside(tmp_path, overwrite=False, mark=ours):
        pass


@pytest.mark.parametrize("kind", ["file", "link", "link to a folder", "pipe"])
def test_a_folder_with_anything_foreign_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    (target / "below").mkdir(parents=True)
    foreign = target / "foreign.txt" if kind == "file" else target / "below" / "x"
    if kind == "file":
        foreign.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(foreign)
    else:
        foreign.symlink_to(tmp_path if kind == "link to a folder" else "nowhere")
    name = foreign.relative_to(target)
    with pytest.raises(UsageError, match=str(name)), written_aside(target, overwrite=True, mark=ours):
        pass
    assert os.path.lexists(foreign)


def test_a_file_is_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="no folder"), written_aside(tmp_path / "out", overwrite=True, mark=ours):
        pass
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_stays_and_the_results_are_kept(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "out.dovit"

    def fill() -> None:
        with written_aside(target, overwrite=overwrite, mark=ours) as folder:
            (folder / "new").write_text("new")
            target.mkdir()
            if overwrite:
                (target / "foreign.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"the results are in .*out-2\.dovit"):
        fill()
    assert [path.name for path in target.iterdir()] == (["foreign.txt"] if overwrite else [])
    assert (tmp_path / "out-2.dovit" / "new").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.dovit", "out.dovit"]


def test_names_of_the_user_that_look_like_ours_are_left_alone(tmp_path: Path) -> None:
    own = {tmp_path / name: name for name in ("out.partial", "out.previous", "out.0123abcd.partial")}
    for path in own:
        path.mkdir()
        (path / "mine").write_text(path.name)
    target = tmp_path / "out"
    for _ in range(2):
        with written_aside(target, overwrite=True, mark=ours):
            pass
    assert all((path / "mine").read_text() == name for path, name in own.items())


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "out"
    with pytest.raises(OutputFailed, match="cannot write"), written_aside(target, overwrite=False, mark=ours):
        pass


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)
    with written_aside(target, overwrite=False, mark=ours):
        pass
    write_text(tmp_path / ("x" * 255), "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["ä" * 127, "x" * 255])


@pytest.mark.parametrize("target", ["in", "in/a.png", ".", "..", "link", "hard.png"])
def test_an_output_is_no_input_and_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    (tmp_path / "work" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("in/a.png").write_text("x")
    Path("link").symlink_to("in")
    Path("hard.png").hardlink_to("in/a.png")
    with pytest.raises(UsageError, match=r"input|current folder"):
        refuse_inputs(Path(target), ["in/a.png", None, "http://a/b.mp4"])
    refuse_inputs(Path("in/out"), ["in/a.png", "in"])


def test_a_folder_is_copied_and_a_full_disk_says_what_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for name in ("a", "left", "inner/left"):
        (source / name).write_text(name)
    source.chmod(0o750)
    (tmp_path / "copy").mkdir()
    copy_folder(source, tmp_path / "copy", without={"left"})
    found = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")}
    assert found == {"a", "inner", "inner/left"} and (tmp_path / "copy").stat().st_mode & 0o777 == 0o750

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path), None, str(target))

    (tmp_path / "more").mkdir()
    said = r"^cannot write x: No space left on device; make room"
    with pytest.raises(OutputFailed, match=said), reported_writes(Path("x")):
        copy_folder(source, tmp_path / "more", copy=full)


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


@pytest.mark.parametrize("content", [b"a\nb", b"\xef\xbb\xbfa\r\nb", b"a\r\nb"])
def test_texts_of_any_editor(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    assert read_text(tmp_path / "names.txt") == "a\nb"
    assert [entry.name for entry in classes_from_file(tmp_path / "names.txt")] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_called_by_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "names.txt").write_bytes("road\n".encode(encoding))
    with pytest.raises(InputError, match="UTF-16 or UTF-32; save it as UTF-8"):
        classes_from_file(tmp_path / "names.txt")


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    target.touch(mode=0o600)
    write_text(target, "1")
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_file_is_written_through(tmp_path: Path, exists: bool) -> None:
    real, link = tmp_path / "deep" / "real.json", tmp_path / "link.json"
    real.parent.mkdir()
    if exists:
        real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_link_in_a_loop_is_an_error_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "loop"
    link.symlink_to("loop")
    with pytest.raises(OutputFailed, match="symbolic links"):
        write_text(link, "x")
    assert link.is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_no_link_lies_in_wait_under_a_name_that_can_be_guessed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "x.json.partial").symlink_to(victim)
    write_text(tmp_path / "x.json", "1")
    with file_written_aside(tmp_path / "x.json") as first, file_written_aside(tmp_path / "x.json") as second:
        assert first != second
    assert victim.read_text() == "precious"
    assert (tmp_path / "x.json.partial").is_symlink()


def test_a_device_and_a_pipe_are_written_through(tmp_path: Path) -> None:
    write_text(Path(os.devnull), "x")
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


def test_the_root_of_the_disk_may_be_asked_about() -> None:
    # Whether it can be written depends on who asks.
    try:
        refuse_unwritable(Path("/"))
    except OutputFailed as error:
        assert "/" in str(error)


def test_what_is_needed_on_the_way_goes_away(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with claimed(target), files.working_folder(target) as folder:
        assert folder.parent == tmp_path and folder.name.startswith("made.")
        (folder / "cache").write_bytes(b"x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), claimed(target), files.working_folder(target):
        raise ZeroDivisionError
    with (
        pytest.raises(OutputFailed, match=r"cannot write .*made: No space left"),
        claimed(target),
        files.working_folder(target) as folder,
    ):
        raise OSError(28, "No space left on device", str(folder / "cache"))
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    script = (
        "import os, sys; from pathlib import Path; from dovit_deploy import claims, files; t = Path(sys.argv[1])\n"
        "with claims.claimed(t), files.working_folder(t) as folder:\n"
        "    (folder / 'cache').write_bytes(b'x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with claimed(target), files.working_folder(target) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())
