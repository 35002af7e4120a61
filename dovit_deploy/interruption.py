"""How does a user end a long job, and what ended a process? Signals, asked for and by name.

Ctrl-C and SIGTERM ask for an orderly end; a second one ends the job at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Give an event that is set when the user asks to stop; the handlers from before are put back at the end.

    A job looks at the event where it can stop without loss. Outside the main thread, where Python allows no signal
    handlers, the event is never set.

    Raises:
        KeyboardInterrupt: (inside the block) the user asked a second time.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_name(number: int) -> str:
    """What a process was ended by: "SIGSEGV" of 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
