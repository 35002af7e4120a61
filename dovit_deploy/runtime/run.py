"""RunJob: a source through a session into an output folder, with the report that tells what happened."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import SourceError
from dovit_deploy.files import make_fresh, partial_path, put_in_place, remove
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.runtime.outputs import RunOutputs, RunReport, row_from_frame
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import ImageResult, predictor_for
from dovit_deploy.sources.source import FailedFrame, Frame, Source

# Decode, infer and encode side by side: two threads around the caller's own, joined by bounded queues.
#
#     reader thread -> queue -> caller: predict -> queue -> writer thread
#
# The queues hold a few frames, so memory does not grow with the length of the source.

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


Summary = dict[str, Any]
Advance = Callable[[float], None]
"""Called after each frame with its share of FLOPs saved."""


class RunJob:
    """One run of `dovit run`.

    Args:
        session: what computes.
        source: where frames come from.
        folder: appears whole at the end, also after an interrupt; while it grows it is `NAME.partial`.
        kinds: of `run_outputs.KINDS`.
        settings: of every frame alike.
        every: the source's `--every`.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        *,
        folder: Path,
        kinds: tuple[str, ...],
        settings: RunSettings,
        every: int,
    ) -> None:
        self._session, self._source, self._folder = session, source, folder
        self._kinds, self._settings, self._every = kinds, settings, every
        self.failures: list[FailedFrame] = []
        self.warnings: list[str] = []

    def run(self, *, stop: threading.Event, advance: Advance, failed: Callable[[str], None]) -> Summary:
        """Work through the source; returns what `summary.json` holds.

        Raises:
            SourceError: not one frame could be read; nothing is left behind.
        """
        partial = partial_path(self._folder)
        make_fresh(partial)
        try:
            summary = self._fill(partial, stop=stop, advance=advance, failed=failed)
            if summary["frames"] == 0 and not summary["interrupted"]:
                reason = self.failures[0].message if self.failures else "the source gave no frame"
                raise SourceError(f"no picture was run: {reason}")
            (partial / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            put_in_place(partial, self._folder)
        finally:
            remove(partial)
        return summary

    def _fill(
        self, partial: Path, *, stop: threading.Event, advance: Advance, failed: Callable[[str], None]
    ) -> Summary:
        predictor = predictor_for(self._session)
        with (
            (partial / "frames.jsonl").open("w", encoding="utf-8") as file,
            RunOutputs(partial, self._source, kinds=self._kinds, every=self._every) as outputs,
        ):
            report = RunReport(file)

            def predict(frame: Frame) -> ImageResult:
                return predictor.run(frame.rgb, self._settings, decode_ms=frame.decode_ms)

            def write(frame: Frame, result: ImageResult) -> None:
                outputs.write(frame, result)
                report.add({**row_from_frame(frame, result.tokens, result.timing), **result.facts()})
                advance(result.tokens.flops_saved)

            def note_failure(frame: FailedFrame) -> None:
                self.failures.append(frame)
                failed(frame.message)

            Pipeline(self._source, predict=predict, write=write, failed=note_failure, stop=stop).run()
        self.warnings = outputs.warnings
        return self._summary(report, interrupted=stop.is_set())

    def _summary(self, report: RunReport, *, interrupted: bool) -> Summary:
        session, settings = self._session, self._settings
        return {
            "frames": report.frames,
            "interrupted": interrupted,
            "engine": session.backend.name,
            "precision": session.backend.precision,
            "thresholds": None if settings.dense else short_thresholds(settings.thresholds),
            "dense": settings.dense,
            "bundle": str(session.bundle.path),
            "machine": machine_facts(),
            "versions": package_versions(),
            "failed": [{"source": frame.source, "message": frame.message} for frame in self.failures],
            **report.statistics(),
        }


def short_thresholds(thresholds: npt.NDArray[np.float32]) -> list[Any]:
    """One number per gate where all classes share it, else one per gate and class."""
    rows = np.round(thresholds.astype(np.float64), 7)
    if rows.size and (rows == rows[:, :1]).all():
        return [float(row[0]) for row in rows]
    return [[float(value) for value in row] for row in rows]


def summary_lines(summary: Summary) -> list[str]:
    """What the user reads at the end."""
    if not summary["frames"]:
        return ["0 frames"]
    latency, tokens = summary["latency_ms"], summary["tokens"]
    kept = " -> ".join(f"{stage['mean']:.0f}" for stage in tokens["kept"])
    return [
        f"{summary['frames']} frames, {summary['engine']} {summary['precision']}",
        f"latency per frame (ms): total {latency['total']['p50']:.1f} median, {latency['total']['p99']:.1f} p99; "
        + ", ".join(f"{part} {latency[part]['p50']:.1f}" for part in ("decode", "preprocess", "model", "postprocess")),
        f"tokens per stage: {kept}",
        f"FLOPs saved: {summary['flops_saved']['mean']:.1%} "
        f"({summary['gmacs']['actual']['mean']:.2f} of {summary['gmacs']['dense']['mean']:.2f} GMACs)",
    ]
