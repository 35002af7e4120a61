"""Decode, infer and encode side by side: two threads around the caller's own, joined by bounded queues.

    reader thread -> queue -> caller: predict -> queue -> writer thread

The queues hold a few frames, so memory does not grow with the length of the source.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from dovit_deploy.runtime.frame_source import FailedFrame, Source
from dovit_deploy.runtime.results import Frame

Result = TypeVar("Result")

DEPTH = 4
"""Frames that may wait between two steps."""

_POLL_S = 0.1


class _End:
    """Nothing more comes; carries the error that ended it, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Pipeline(Generic[Result]):
    """One pass over a source.

    Args:
        source: where frames come from; read in a thread of its own.
        predict: called in the caller's thread, frame by frame.
        write: called in a thread of its own, in the order of the frames.
        failed: called in the caller's thread for a frame that could not be read.
        stop: when set, no further frame is begun; those begun are finished and written.
    """

    def __init__(
        self,
        source: Source,
        *,
        predict: Callable[[Frame], Result],
        write: Callable[[Frame, Result], None],
        failed: Callable[[FailedFrame], None],
        stop: threading.Event,
    ) -> None:
        self._source, self._predict, self._write, self._failed = source, predict, write, failed
        self._stop = stop
        self._given_up = threading.Event()
        self._decoded: queue.Queue[Frame | FailedFrame | _End] = queue.Queue(DEPTH)
        self._finished: queue.Queue[tuple[Frame, Result] | _End] = queue.Queue(DEPTH)
        self._write_error: BaseException | None = None

    def run(self) -> None:
        """Work until the source ends or `stop` is set; raises what any of the three steps raised."""
        reader = threading.Thread(target=self._read, name="dovit-reader", daemon=True)
        writer = threading.Thread(target=self._drain, name="dovit-writer", daemon=True)
        reader.start()
        writer.start()
        try:
            self._infer()
        finally:
            self._given_up.set()
            self._put_finished(_End())
            writer.join()
        if self._write_error is not None:
            raise self._write_error

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put_decoded(item):
                    return
        except BaseException as caught:  # noqa: BLE001  handed to the caller's thread, which raises it
            error = caught
        self._put_decoded(_End(error))

    def _put_decoded(self, item: Frame | FailedFrame | _End) -> bool:
        """False when nobody wants it any more."""
        while not self._given_up.is_set():
            try:
                self._decoded.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _infer(self) -> None:
        while not self._stop.is_set() and self._write_error is None:
            try:
                item = self._decoded.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            if isinstance(item, FailedFrame):
                self._failed(item)
            else:
                self._put_finished((item, self._predict(item)))

    def _put_finished(self, item: tuple[Frame, Result] | _End) -> None:
        self._finished.put(item)

    def _drain(self) -> None:
        """Write what comes; after an error go on taking, so that nobody waits for room, and write nothing."""
        while True:
            item = self._finished.get()
            if isinstance(item, _End):
                return
            if self._write_error is None:
                try:
                    self._write(*item)
                except BaseException as error:  # noqa: BLE001  raised in the caller's thread
                    self._write_error = error
