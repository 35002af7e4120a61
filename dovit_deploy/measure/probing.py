"""Run probes in processes of their own, side by side: what crashes or hangs is reported, and takes nothing along."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dovit_deploy
from dovit_deploy.bundle.spec import Noun

TIME_LIMIT_S = 60.0
"""For one probe; importing PyTorch from a cold disk takes some of it."""

AT_ONCE = 3


class Finding(Noun):
    """What one probe found."""

    name: str
    works: bool
    detail: str
    """Versions where it works, the reason where it does not."""


def findings(names: Sequence[str], *, time_limit_s: float = TIME_LIMIT_S) -> dict[str, Finding]:
    """Run the probes called `names`; by name, in that order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda name: finding_of(name, probe_command(name), time_limit_s), names)
        return {finding.name: finding for finding in found}


def probe_command(name: str) -> list[str]:
    """What is run for the probe called `name`."""
    # -P, and our own place last: nothing in the user's folder or beside us may pass for a module.
    place = str(Path(dovit_deploy.__file__).resolve().parents[1])
    program = (
        f"import sys; sys.path.append({place!r}); from dovit_deploy.measure.probe import main; sys.exit(main({name!r}))"
    )
    return [sys.executable, "-P", "-c", program]


def finding_of(name: str, command: Sequence[str], time_limit_s: float) -> Finding:
    """Run `command` and say how it went; the last line of what it printed tells what was found, or why it failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=time_limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name=name, works=False, detail=f"no answer within {time_limit_s:g} s")
    if done.returncode == 0:
        return Finding(name=name, works=True, detail=_last_line(done.stdout))
    if done.returncode < 0:
        return Finding(name=name, works=False, detail=f"crashed with {_signal_name(-done.returncode)}")
    return Finding(name=name, works=False, detail=_last_line(done.stderr) or f"left with code {done.returncode}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
