"""One writer per target: across processes, threads and kills, with nothing left beside the target."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from dovit_deploy import claims
from dovit_deploy.claims import claimed, claimed_free
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.files import first_foreign, write_text, written_aside

TRY = """
import sys
from pathlib import Path
from dovit_deploy.claims import claimed
from dovit_deploy.errors import UsageError
try:
    with claimed(Path(sys.argv[1])):
        print("got it")
except UsageError as error:
    print(error)
"""


def tried(path: Path) -> str:
    """What another process is told that wants to write `path`."""
    return subprocess.run([sys.executable, "-c", TRY, path], capture_output=True, text=True, check=True).stdout


def anything(folder: Path) -> str | None:
    return first_foreign(folder, lambda path: True)


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / "link").symlink_to(target)
    with claimed(target):
        assert "is in use: another run writes here" in tried(target)
        # Under any name of the same target.
        assert "is in use" in tried(tmp_path / "x" / ".." / "out")
        assert "is in use" in tried(tmp_path / "link")
        assert tried(tmp_path / "other") == "got it\n"
    assert tried(target) == "got it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_second_thread_is_refused_and_the_same_may_claim_again(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with claimed(tmp_path / "out"):
                found.append("got it")
        except UsageError as error:
            found.append(str(error))

    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "in use" in found[0]
    other()
    assert found[1] == "got it"


def test_locks_go_away_with_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with claimed(tmp_path / "out"):
        pass
    assert {path.name for path in (tmp_path / "state").rglob("*") if path.is_file()} <= {"guard"}


def test_free_names_are_numbered_and_reserved(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x-3").symlink_to("nowhere")
    with ExitStack() as stack:
        assert stack.enter_context(claimed_free(tmp_path / "x")) == tmp_path / "x-2"
        found: list[Path] = []

        def other() -> None:
            with claimed_free(tmp_path / "x") as free:
                found.append(free)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == [tmp_path / "x-4"]
    with claimed_free(tmp_path / "x") as free:
        assert free == tmp_path / "x-2"


KILLED = """
import os, signal, sys
from pathlib import Path
from dovit_deploy import files
from dovit_deploy.files import first_foreign, write_text, written_aside
kill = lambda *rest, **named: os.kill(os.getpid(), signal.SIGKILL)
target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "writing":
    files.put_in_place = kill
elif moment == "set aside":
    files._renamed = lambda *rest: False
    rename = Path.rename
    Path.rename = lambda self, to: kill() if self.name.endswith(".partial") else rename(self, to)
elif moment == "replaced":
    files.remove = kill
with written_aside(target, overwrite=True, mark=lambda folder: None) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize(("moment", "then"), [("writing", "old"), ("set aside", "old"), ("replaced", "new")])
def test_what_a_killed_process_left_is_tidied_up_by_the_next(tmp_path: Path, moment: str, then: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    child = subprocess.run([sys.executable, "-c", KILLED, target, moment], check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with claimed(target):
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in target.iterdir()] == [then]
    with written_aside(target, overwrite=True, mark=anything):
        pass
    assert list(target.iterdir()) == []


def test_a_file_in_a_claimed_folder_is_tidied_up_too(tmp_path: Path) -> None:
    """As the state of a training, of which every kill would leave a copy."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom dovit_deploy.claims import claimed\n"
        "from dovit_deploy.files import file_written_aside\ntarget = Path(sys.argv[1])\n"
        "with claimed(target), file_written_aside(target / 'state.pt'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    write_text(tmp_path / "state.pt", "old")
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_where_the_state_folder_cannot_be_written_another_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(claims.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    with claimed(tmp_path / "out"):
        assert list((tmp_path / "temporary").glob(f"dovit-deploy-{os.getuid()}-locks/*.lock"))
    monkeypatch.setattr(claims.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="XDG_STATE_HOME"), claimed(tmp_path / "out"):
        pass


def test_a_folder_of_locks_that_is_a_link_or_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims.os, "getuid", lambda: 12345)
    with pytest.raises(EnvironmentProblem, match="another user"), claimed(tmp_path / "out"):
        pass
