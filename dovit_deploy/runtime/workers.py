"""How many images of a folder run side by side, and with how many threads each?

Images do not depend on each other, and two of them on two cores are faster than two threads in one of them: a thread
waits for the other at the end of every operator. So the threads that a run has go to as many images; only where there
are fewer images do several threads share one. A video is one stream, whose frames come one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.engines.registry import engine_entry
from dovit_deploy.machine import this_machine

MOST_WORKERS = 16
"""Images in memory at once; one thread writes for all of them, and more would only wait for it."""


@dataclass(frozen=True)
class Workers:
    """What a run does at once."""

    count: int
    """Images that go through the model at the same time."""
    threads: int | None
    """Of each; None leaves it to the engine."""


def workers_for(engine: str, *, images: int | None, threads: int | None) -> Workers:
    """How a run shares its threads.

    Args:
        engine: its name; one that is not `concurrent` runs one image after another.
        images: how many there are; None: frames of one stream.
        threads: of the whole run; None: one per core that the process may use.

    Raises:
        UsageError: there is no such engine.
    """
    if images is None or images < 2 or not engine_entry(engine).concurrent:
        return Workers(1, threads)
    together = threads or this_machine().cores
    count = max(1, min(together, images, MOST_WORKERS))
    return Workers(count, max(1, together // count))
