"""How do rows get to workers on other processes and machines? Ray Data: an actor is a worker, a block is a row.

Only here is Ray spoken to. Ray begins an actor anew that was killed, and gives its row to another one; what the killed
one had written of it counts nothing without a marker. Rows are handed out one at a time, so that whoever is free takes
the next one, and few results are under way: memory does not grow with the archive.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovit_deploy import packages
from dovit_deploy.batch.rows import BatchRow
from dovit_deploy.batch.work import RowOutcome, Worker, WorkPlan
from dovit_deploy.errors import EnvironmentProblem, UsageError

ANSWER_S = 5.0
"""Seconds in which an address must take a connection."""
POLL_S = 0.2
STDERR = 2
"""Its number, which Ray's libraries write to."""
OBJECT_STORE_BYTES = 80 << 20
"""Of a local Ray, which passes names of rows and of parts; the least that it takes is 75 MiB."""
MOST_BLOCKS = 1_000_000
_ROW, _OUTCOME = "row", "outcome"


@dataclass(frozen=True)
class Cluster:
    """A Ray that is connected to."""

    workers: int
    threads: int
    """Processors that a worker takes."""

    def execute(self, plan: WorkPlan, rows: Sequence[BatchRow]) -> Iterator[RowOutcome | None]:
        """What comes of each row, as it comes; None every now and then.

        Raises:
            EnvironmentProblem: Ray gives up.
        """
        ray, data = packages.ray(), packages.ray_data()
        arrived: queue.Queue[RowOutcome | BaseException | None] = queue.Queue()
        table = data.from_items(
            [{_ROW: row.model_dump_json()} for row in rows], override_num_blocks=min(len(rows), MOST_BLOCKS)
        ).map_batches(
            RowsOnRay,
            fn_constructor_args=(plan,),
            batch_size=1,
            num_cpus=self.threads,
            # One at a time: a row that waits for a busy actor could be done by a free one.
            compute=data.ActorPoolStrategy(size=min(self.workers, len(rows)), max_tasks_in_flight_per_actor=1),
        )

        def read() -> None:
            try:
                for taken in table.iter_rows():
                    arrived.put(RowOutcome.model_validate_json(taken[_OUTCOME]))
                arrived.put(None)
            except BaseException as error:  # noqa: BLE001  raised by the driver's thread
                arrived.put(error)

        threading.Thread(target=read, name="dovit-ray", daemon=True).start()
        while True:
            try:
                item = arrived.get(timeout=POLL_S)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, ray.exceptions.RayError):
                raise EnvironmentProblem(f"Ray gave up: {str(item).strip().splitlines()[-1]}") from item
            if isinstance(item, BaseException):
                raise item
            yield item


class RowsOnRay:
    """A worker as Ray Data calls it: batches of one row in, what came of it out."""

    def __init__(self, plan: WorkPlan) -> None:
        self._worker = Worker(plan)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = [BatchRow.model_validate_json(str(text)) for text in batch[_ROW]]
        return {_OUTCOME: [self._worker(row).model_dump_json() for row in rows]}


@contextmanager
def connected(address: str | None, *, workers: int | None, threads: int) -> Iterator[Cluster]:
    """A cluster that was there, or a Ray of this machine's own, which ends with the block.

    Args:
        address: of a cluster, as Ray takes it; None: begin one here.
        workers: None: as many as there are processors for.
        threads: of each worker.

    Raises:
        PackageMissing: Ray is not installed.
        UsageError: more workers than the cluster has processors for.
        EnvironmentProblem: the address does not answer, or Ray does not begin.
    """
    ray, data = packages.ray(), packages.ray_data()
    context = data.DataContext.get_current()
    # Ours is the one display of progress, and rows come in whatever order they are done.
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        here = workers or max(1, len(os.sched_getaffinity(0)) // threads)
        given |= {"num_cpus": here * threads, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        refuse_silent(address)
        given |= {"address": address}
    try:
        with _native_lines_dropped():
            ray.init(**given)
    except (OSError, RuntimeError, ValueError) as error:
        what = "Ray does not begin here" if address is None else f"--address {address}: no Ray that can be joined"
        raise EnvironmentProblem(f"{what} ({str(error).strip().splitlines()[0]})") from error
    try:
        room = int(ray.cluster_resources().get("CPU", 0)) // threads
        if room < (workers or 1):
            raise UsageError(
                f"--workers {workers or 1}: the cluster has processors for {room} workers of {threads} threads each; "
                "give fewer, or a smaller --threads"
            )
        yield Cluster(workers or room, threads)
    finally:
        ray.shutdown()


@contextmanager
def _native_lines_dropped() -> Iterator[None]:
    """Ray's libraries write to this process's stderr as they begin, whatever level they are given."""
    try:
        kept = os.dup(STDERR)
    except OSError:
        # It is closed.
        yield
        return
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def refuse_silent(address: str) -> None:
    """Raise EnvironmentProblem for HOST:PORT where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal() or not host:
        if address in ("auto", "local"):
            return
        raise UsageError(f"--address: '{address}' given; HOST:PORT of a Ray cluster is needed, or auto")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S):
            return
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EnvironmentProblem(f"--address {address}: no Ray answers there ({reason})") from error
