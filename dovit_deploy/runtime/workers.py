"""How many images, and windows of an image, run side by side, and with how many threads each?

Images do not depend on each other, nor do the windows that slide over one of them, and two runs of the model on two
cores are faster than two threads in one run: a thread waits for the other at the end of every operator. So the threads
that a run has go to as many images, then to as many windows of each; only where there are fewer do several threads
share one. A video is one stream, whose frames come one after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from dovit_deploy.engines.registry import engine_entry
from dovit_deploy.machine import this_machine

MOST_WORKERS = 16
"""Images in memory at once, or windows of one: one thread decodes or averages for all of them, and more would only
wait for it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workers:
    """What a run does at once."""

    images: int
    """That go through the model at the same time."""
    windows: int
    """Of each image."""
    threads: int | None
    """Of each window; None leaves it to the engine."""

    @property
    def callers(self) -> int:
        """Threads that run the model at the same time."""
        return self.images * self.windows


def rounds_of(windows: int, *, at_once: int) -> int:
    """How many times `at_once` windows run side by side until all are done."""
    return -(-windows // at_once)


ONE_BY_ONE = Workers(1, 1, None)
"""One image or window after another."""


def workers_for(engine: str, *, images: int | None, windows: int, threads: int | None) -> Workers:
    """How a run shares its threads.

    Args:
        engine: its name; one that is not `concurrent` runs one image after another.
        images: how many there are; None: frames of one stream.
        windows: how many an image has.
        threads: of the whole run; None: one per core that the process may use.

    Raises:
        UsageError: there is no such engine.
    """
    images = images or 1
    if max(images, windows) < 2 or not engine_entry(engine).concurrent:
        return Workers(1, 1, threads)
    together = threads or this_machine().cores
    at_once = max(1, min(together, images, MOST_WORKERS))
    of_each = max(1, min(together // at_once, windows, MOST_WORKERS))
    return Workers(at_once, of_each, max(1, together // (at_once * of_each)))


def in_order(
    pool: Executor, function: Callable[[_Item], _Result], items: Iterable[_Item], *, at_once: int
) -> Iterator[_Result]:
    """`function` of each item, in the order of the items, while `pool` works on the next `at_once`."""
    begun: deque[Future[_Result]] = deque()
    try:
        for item in items:
            # The next one begins before this result is used, and no more of them are in memory.
            done = [begun.popleft().result()] if len(begun) == at_once else []
            begun.append(pool.submit(function, item))
            yield from done
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
