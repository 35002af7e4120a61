"""The tests' command line without imports is the command line: exit code, streams, folder, time limit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fork_server import HEAVY, ForkServer, import_everything


def test_it_gives_what_a_new_interpreter_gives(fork_server: ForkServer, tmp_path) -> None:
    for words in (["inspect", "no such.dovit"], ["run", "--help"]):
        fresh = subprocess.run(
            [sys.executable, "-m", "dovit_deploy", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        forked = fork_server.run(words, folder=tmp_path, timeout=60)
        assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_a_script_finds_what_lies_beside_it_and_nothing_of_the_server(fork_server: ForkServer, tmp_path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    script = tmp_path / "script.py"
    script.write_text("import beside, sys\nprint(__name__, beside.NAME, sys.argv, sys.path[0])\nsys.exit(3)\n")
    (tmp_path / "elsewhere").mkdir()
    fresh = subprocess.run(
        [sys.executable, str(script), "a"], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
    )
    forked = fork_server.run(["a"], folder=tmp_path / "elsewhere", timeout=60, script=script)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_it_is_used_whatever_was_imported(fork_server: ForkServer, monkeypatch) -> None:
    """Packages set variables when they are imported; those that a test sets are another matter."""
    import_everything()
    assert {name for name in HEAVY if name in sys.modules} >= {"torch", "onnxruntime", "cv2"}
    assert fork_server.suits()
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    assert not fork_server.suits()


def test_what_takes_too_long_is_killed(fork_server: ForkServer, tmp_path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run(["--version"], folder=tmp_path, timeout=0)
    assert fork_server.run(["--version"], folder=tmp_path, timeout=60).returncode == 0
