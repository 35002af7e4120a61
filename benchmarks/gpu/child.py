"""How one section runs: in a process of its own, which may raise, hang or be killed, and loses nothing that it sent.

The process is forked, so that PyTorch is imported once; the parent never touches the GPU, which no fork survives.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

from dovit_deploy.interruption import die_with, signal_name
from gpu.result import SectionOutcome
from gpu.section import ABSENT, Bench, Found, ProofSection, TimeBudget, error_line, said

FORK = multiprocessing.get_context("fork")
STDERR = 2
OWN_SHARE = 0.9
"""Of a section's time, what its parts may plan with."""
LOOK_S = 0.1
"""Seconds between two looks at whether a silent process still lives."""
END_S = 10.0
"""Seconds that a killed process may take to be gone: the driver frees the memory of its GPU."""


@dataclass(frozen=True)
class Ended:
    """What a section's process sends last."""

    outcome: Literal["done", "failed", "not done"]
    why: str


def run_section(section: ProofSection, bench: Bench, keep: Callable[[Found], None]) -> SectionOutcome:
    """Run `section` within its time and the budget's; `keep` is called with each result as it comes.

    Raises:
        KeyboardInterrupt: the user asked to stop; the section's process is gone.
    """
    start = time.monotonic()
    if (missing := bench.budget.lacks(section.name, section.least)) is not None:
        return SectionOutcome(name=section.name, outcome="not done", why=missing.why, seconds=0.0)
    limit = min(section.seconds, bench.budget.left)
    # What knows how long it takes stops by itself, before it is killed.
    bench = replace(bench, budget=TimeBudget(min(bench.budget.end, start + OWN_SHARE * limit)))
    receiver, sender = FORK.Pipe(duplex=False)
    lives, held = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_work, args=(section, bench, receiver, sender, limit, os.getpid(), lives, held))
    process.start()
    # Without this copy of ours the pipe ends when the process does.
    sender.close()
    try:
        ended = _received(process, receiver, start + limit, keep)
    finally:
        _kill(process)
        for connection in (receiver, lives, held):
            connection.close()
    if ended is None:
        ended = _cut_off(limit, in_own_time=limit == section.seconds)
    return SectionOutcome(
        name=section.name, outcome=ended.outcome, why=ended.why, seconds=round(time.monotonic() - start, 1)
    )


def _work(
    section: ProofSection,
    bench: Bench,
    receiver: Connection,
    sender: Connection,
    seconds: float,
    parent: int,
    lives: Connection,
    held: Connection,
) -> None:
    """What the process does; `lives` ends when the parent does, which alone keeps `held`."""
    # Killed, or hung up on with its terminal, the parent ends nothing; what hangs would keep the GPU for ever.
    die_with(parent)
    # Where it hangs, on stderr, shortly before it is killed.
    faulthandler.dump_traceback_later(0.95 * seconds, file=STDERR)
    # A group of its own: what a section starts (compilers, `dovit build`) is killed with it.
    os.setsid()
    held.close()
    _end_group_behind(lives)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    receiver.close()
    try:
        for found in section.find(bench):
            sender.send(found)
        ended = Ended("done", "")
    except ABSENT as error:
        ended = Ended("not done", said(error))
    # Whatever goes wrong is a finding, to be reported before the next section runs.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        ended = Ended("failed", error_line(error))
    sender.send(ended)
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: taking a driver down that a section broke may crash, and its outcome is sent.
    os._exit(0)


def _end_group_behind(lives: Connection) -> None:
    """Fork a process that waits for the end of `lives` and then kills the group: what is started here has no other tie
    to a parent that is killed."""
    if os.fork():
        return
    with suppress(EOFError, OSError):
        lives.recv_bytes()
    os.killpg(0, signal.SIGKILL)


def _received(process: BaseProcess, receiver: Connection, end: float, keep: Callable[[Found], None]) -> Ended | None:
    """Take what comes until the section has ended; None where it had not by `end`."""
    while (left := end - time.monotonic()) > 0:
        # First what it sent: a process that died may have sent much before.
        message = _next(receiver, min(left, LOOK_S))
        if isinstance(message, Ended):
            return message
        if message is not None:
            keep(message)
        elif (why := _death(process)) is not None:
            return Ended("failed", why)
    return None


def _next(receiver: Connection, seconds: float) -> Found | Ended | None:
    """The next message; None if there is none after `seconds`."""
    if not receiver.poll(seconds):
        return None
    try:
        message: Found | Ended = receiver.recv()
    # Its process died, perhaps in the middle of a message.
    except (EOFError, OSError):
        time.sleep(seconds)
        return None
    return message


def _death(process: BaseProcess) -> str | None:
    """How the process died; None while it lives."""
    # Not through `process`, which would let go of its number: the group that is to be killed has it, too. And not
    # through the end of a pipe, which what the process has forked holds open.
    ended = os.waitid(os.P_PID, _number(process), os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if ended is None:
        return None
    if ended.si_code == os.CLD_EXITED:
        return f"its process ended with code {ended.si_status} and no outcome"
    name = signal_name(ended.si_status)
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _cut_off(seconds: float, *, in_own_time: bool) -> Ended:
    if in_own_time:
        return Ended("failed", f"not finished after {seconds:.0f} s; killed")
    return Ended("not done", f"not finished after {seconds:.0f} s, when time was up; what it had measured is kept")


def _kill(process: BaseProcess) -> None:
    """End the process and whatever it started."""
    # Its group has its number, which nobody else can have before it is joined; no group yet: it was just begun.
    with suppress(ProcessLookupError):
        os.killpg(_number(process), signal.SIGKILL)
    process.kill()
    process.join(END_S)


def _number(process: BaseProcess) -> int:
    if process.pid is None:
        raise ProcessLookupError("not started")
    return process.pid
