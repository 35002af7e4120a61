"""How does a user end a verb, and what ended a process? Signals, asked for and by name.

Ctrl-C and SIGTERM are one request. A verb that can end in order, with what was done kept, looks at an event
(`stop_requests`); every other one is unwound by KeyboardInterrupt, which removes what it had half written
(`interruptible`). A second request ends the verb at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1
"""Of <sys/prctl.h>."""
SAME_REQUEST_S = 0.5
"""Signals this close together are one request: `timeout` and terminals signal the process and its whole group."""


class _Requests:
    """Counts requests, not signals."""

    last = float("-inf")
    """When the last request came, by the monotonic clock; of the whole process, whoever was asked."""

    def __init__(self) -> None:
        self.count = 0

    def new(self) -> bool:
        """Whether the signal that arrived now is a request, rather than the echo of the last one."""
        now = time.monotonic()
        if now - _Requests.last < SAME_REQUEST_S:
            return False
        _Requests.last = now
        self.count += 1
        return True


@contextmanager
def _handled(ask: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both signals call `ask`; the handlers from before are put back at the end.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class interruptible:
    """While the block runs, either signal raises KeyboardInterrupt in it.

    An error by which the block ends after that is the interrupt, too: some libraries turn whatever is raised while
    they are imported or call back into errors of their own.
    """

    def __init__(self) -> None:
        self._requests = _Requests()
        self._handlers = _handled(self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._requests.new():
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._handlers.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(None, None, None)
        if self._requests.count and isinstance(error, Exception):
            raise KeyboardInterrupt from error


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Give an event that is set when the user asks to stop; the handlers from before are put back at the end.

    A job looks at the event where it can stop without loss. Outside the main thread the event is never set.

    Raises:
        KeyboardInterrupt: (inside the block) the user asked a second time.
    """
    stop, requests = threading.Event(), _Requests()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if not requests.new():
            return
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with _handled(ask):
        yield stop


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that ends; on Linux only."""
    if not sys.platform.startswith("linux"):
        return
    # Imported here: every verb imports this file, and no verb is such a process.
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call.
    if os.getppid() != parent:
        sys.exit(1)


def signal_name(number: int) -> str:
    """What a process was ended by: "SIGSEGV" of 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
