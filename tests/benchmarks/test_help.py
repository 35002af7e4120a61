"""Every benchmark is a script that runs from any folder, finds what it shares with others, and explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fork_server import ForkServer
from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


def test_there_are_scripts() -> None:
    assert {"graphs.py", "families.py", "why_not/compare.py", "gpu/prove.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_from_another_folder(script: str, tmp_path: Path, fork_server: ForkServer) -> None:
    assert fork_server.suits()
    result = fork_server.run(["--help"], folder=tmp_path, timeout=120, script=FOLDER / script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {Path(script).name}")
    assert not list(tmp_path.iterdir())
