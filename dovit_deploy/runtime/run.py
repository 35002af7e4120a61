"""How a source goes through a session into an output folder, and what the report of that run holds.

Decoding, the model and encoding work side by side, joined by bounded queues, so that memory does not grow with the
length of the source:

    reader thread -> queue -> caller: predict -> queue -> writer thread

Images of a folder may be predicted several at a time (`workers`); rows and files come in the order of the images.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, TypeVar

from dovit_deploy.errors import DeviceFailed, OutputFailed, SourceError
from dovit_deploy.files import write_text, written_aside
from dovit_deploy.machine import machine_facts, package_versions
from dovit_deploy.pages.page import Page, html_from_page
from dovit_deploy.runtime.album import Album
from dovit_deploy.runtime.audit import Audit, Audited, AuditPlan, DriftAlarm
from dovit_deploy.runtime.between import Between
from dovit_deploy.runtime.frame_answers import Auditing, FrameAnswers
from dovit_deploy.runtime.outputs import (
    REPORT_PAGE,
    ROWS,
    SUMMARY,
    PaintedFrame,
    RunOutputs,
    RunReport,
    foreign_in_run,
    row_from_frame,
)
from dovit_deploy.runtime.run_page import PagePlan, RunFacts, page_from_run
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings, short_thresholds
from dovit_deploy.runtime.tasks import ImageResult
from dovit_deploy.runtime.workers import ONE_BY_ONE, Workers, rounds_of
from dovit_deploy.sources.source import FailedFrame, Frame, Source
from dovit_deploy.sources.stills import with_stills_marked

Summary = dict[str, Any]
"""What `summary.json` holds."""
Frames = Iterable[Frame | FailedFrame]
"""All frames of a source, in order; iterated once."""
Advance = Callable[[float], None]
"""Called after each frame with the fraction of its FLOPs that was saved."""

QUEUED_FRAMES = 4
"""Frames that may wait between two steps: enough to bridge a slow one, a few MB each."""

SUMMARY_ROOM = 1 << 16
"""Bytes, more than any summary takes that does not list thousands of failed inputs."""

_POLL_S = 0.1
"""Seconds after which a thread that waits at a queue looks whether it should end."""


@dataclass(frozen=True)
class RunPlan:
    """What a run writes and how, with every flag resolved."""

    folder: Path
    """Appears whole at the end, also after an interrupt; while it grows it is `NAME.<random>.partial`."""
    overwrite: bool
    kinds: tuple[str, ...]
    """Of `outputs.PAINTED`: what is written of each frame."""
    settings: RunSettings
    """Of every frame alike."""
    every: int = 1
    """The source gives every n-th frame."""
    legend: bool = True
    """Letter classes and figures on what is painted."""
    at_once: Workers = ONE_BY_ONE
    """For which the session is made."""
    page: PagePlan | None = None
    """What `report.html` says of how the run was asked for; None: there is none."""
    audit: AuditPlan | None = None
    """Frames that run dense, too; settings that change with what they show are for one image at a time."""
    between: Between | None = None
    """Frames of a video that do not run, and what they take; None: all run."""
    answers: FrameAnswers | None = None
    """Those that were computed before; None: the session answers."""


@dataclass(frozen=True)
class RunOutcome:
    """What came of a run; the summary is in the folder already."""

    summary: Summary
    failures: tuple[FailedFrame, ...]
    warnings: tuple[str, ...]
    """Lines for the user, about what was written."""
    seconds: float
    """From before the first frame was read until the last was written."""
    ended: OutputFailed | DeviceFailed | None = None
    """What ended it early, the disk or the GPU; what was done until then is in the folder, as after an interrupt."""


@dataclass(frozen=True)
class _Work:
    """What was done of a source, whole frames only."""

    report: RunReport
    album: Album | None
    audit: Audit | None
    failures: list[FailedFrame]
    warnings: list[str]
    ended: OutputFailed | DeviceFailed | None


def run_source(
    session: Session,
    source: Source,
    plan: RunPlan,
    *,
    stop: threading.Event,
    advance: Advance,
    failed: Callable[[str], None],
    frames: Frames | None = None,
    drifted: Callable[[DriftAlarm], None] | None = None,
) -> RunOutcome:
    """Work through `source` and write what `plan` names.

    Args:
        session: what computes.
        source: iterated once.
        stop: when set, no further frame is begun; those begun are finished and written.
        advance: called after each frame that is written.
        failed: called with a line for the user for each frame that could not be read.
        frames: those of `source`, where somebody iterates it already.
        drifted: called with each alarm of an audit.

    Raises:
        SourceError: not one frame could be read; nothing is left behind.
        UsageError: the folder exists, and is not ours or the plan does not allow to overwrite it; or another run writes
            there.
        OutputFailed: the disk did not take one frame, or no summary; nothing is left behind.
        DeviceFailed: the GPU did not do one frame; nothing is left behind.
    """
    with written_aside(plan.folder, overwrite=plan.overwrite, mark=foreign_in_run) as folder:
        # Room for the summary, so that also on a disk that is full by then the work is kept.
        (folder / SUMMARY).write_bytes(bytes(SUMMARY_ROOM))
        start = perf_counter()
        frames = source if frames is None else frames
        work = _work_through(session, source, frames, plan, folder, stop, advance, failed, drifted)
        seconds = perf_counter() - start
        summary = _summary(session, plan, work, interrupted=stop.is_set() or work.ended is not None)
        # A run that is interrupted before its first frame has not failed: its report has 0 frames.
        if not work.report.frames and not stop.is_set():
            reason = work.failures[0].message if work.failures else "the source gave no frame"
            raise SourceError(f"no frame could be run: {reason}")
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        ended = work.ended
        if plan.page is not None and work.album is not None and ended is None:
            gates = tuple(gate.layer for gate in session.bundle.manifest.spec.gates)
            facts = RunFacts(plan.page, seconds, gates, video=source.kind != "images")
            ended = _page_written(folder, plan, page_from_run(summary, folder / ROWS, work.album, facts))
    return RunOutcome(summary, tuple(work.failures), tuple(work.warnings), seconds, ended)


def _page_written(folder: Path, plan: RunPlan, page: Page) -> OutputFailed | None:
    """Write `report.html`; what the disk said instead, and then the rest of the run stays."""
    try:
        write_text(folder / REPORT_PAGE, html_from_page(page))
    except OutputFailed as error:
        return OutputFailed(_as_given(error, folder, plan))
    return None


def _work_through(
    session: Session,
    source: Source,
    frames: Frames,
    plan: RunPlan,
    folder: Path,
    stop: threading.Event,
    advance: Advance,
    failed: Callable[[str], None],
    drifted: Callable[[DriftAlarm], None] | None,
) -> _Work:
    workers, failures = plan.at_once.images, list[FailedFrame]()
    answer = plan.answers or FrameAnswers(session, plan.settings, plan.at_once, plan.between)
    auditing = Auditing(answer, plan.audit, drifted)
    report = RunReport(folder / ROWS)
    rated = plan.answers is None
    outputs = RunOutputs(folder, source, kinds=plan.kinds, every=plan.every, legend=plan.legend, rated=rated)
    album = None if plan.page is None else Album(video=source.kind != "images")

    def predict(frame: Frame) -> _Predicted:
        result = answer(frame)
        audited = auditing.audited(frame, result)
        # Workers paint what they predicted: one thread could not do it for all of them. A single one goes on to the
        # next frame, and the writer paints beside it.
        return _Predicted(result, audited, outputs.painted(result) if workers > 1 else None)

    def write(frame: Frame, predicted: _Predicted) -> None:
        result, audited = predicted.result, predicted.audited
        outputs.write(frame, predicted.painted or outputs.painted(result))
        row = row_from_frame(frame, result.tokens, result.timing, audited) | result.facts()
        report.add(row)
        if album is not None:
            album.add(row, result)
        auditing.written(frame, audited)
        advance(result.tokens.flops_saved)

    def note_failure(frame: FailedFrame) -> None:
        failures.append(frame)
        failed(frame.message)

    ended = None
    try:
        with report, outputs:
            # Frames of a video alone: images that equal each other may be anywhere in a folder.
            frames = frames if source.video is None else with_stills_marked(frames)
            Pipeline(frames, predict=predict, write=write, failed=note_failure, stop=stop, workers=workers).run()
    except (OutputFailed, DeviceFailed) as error:
        ended = type(error)(_as_given(error, folder, plan))
        if not report.frames:
            raise ended from error
        report.keep_whole()
        outputs.keep_whole(report.frames)
    # The writers complete their warnings when they are closed.
    auditing.finish()
    return _Work(report, album, auditing.audit, failures, outputs.warnings, ended)


def _as_given(error: Exception, folder: Path, plan: RunPlan) -> str:
    """The message with the name that the user gave; the folder is called otherwise while it grows."""
    return str(error).replace(str(folder), str(plan.folder))


@dataclass(frozen=True)
class _Predicted:
    result: ImageResult
    audited: Audited | None
    painted: PaintedFrame | None
    """None: the writer paints."""


def _summary(session: Session, plan: RunPlan, work: _Work, *, interrupted: bool) -> Summary:
    return {
        "frames": work.report.frames,
        "still": work.report.stills,
        "filled": None if plan.between is None else plan.between.facts(work.report.filled, work.report.model_ms()),
        "interrupted": interrupted,
        "engine": session.backend.name,
        "precision": session.backend.precision,
        "thresholds": None if plan.settings.dense else short_thresholds(plan.settings.thresholds),
        "dense": plan.settings.dense,
        "deadline": _deadline_facts(plan, work.report),
        "audit": None if work.audit is None else work.audit.facts(),
        "compiling": work.report.compiling(),
        "bundle": str(session.bundle.path),
        "machine": machine_facts(),
        "versions": package_versions(),
        "failed": [{"source": frame.source, "message": frame.message} for frame in work.failures],
        **work.report.statistics(),
    }


def _deadline_facts(plan: RunPlan, report: RunReport) -> dict[str, Any] | None:
    """What was asked for, by which model it was kept, and what it cut; None without one."""
    deadline, at_once = plan.settings.deadline, plan.at_once.windows
    if deadline is None:
        return None
    late = (
        frames
        for windows, frames in report.windows.items()
        if not deadline.over(rounds_of(windows, at_once=at_once)).possible
    )
    return {
        "ms": deadline.milliseconds,
        "least_ms": float(deadline.least),
        "clock": deadline.model.clock,
        "model_error": deadline.model.error,
        "capped_frames": report.capped_frames,
        "capped_tokens": report.capped_tokens,
        "late_frames": sum(late),
    }


_Result = TypeVar("_Result")


class _End:
    """Nothing more comes; carries the error that ended it, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Pipeline(Generic[_Result]):
    """One pass over a source: two threads around the caller's own.

    Args:
        frames: read in a thread of their own.
        predict: called in the caller's thread, frame by frame; with several workers in threads of theirs.
        write: called in a thread of its own, in the order of the frames.
        failed: called in the caller's thread for a frame that could not be read.
        stop: when set, no further frame is begun; those begun are finished and written.
        workers: frames that are predicted at once, each in a thread of its own.
    """

    def __init__(
        self,
        frames: Frames,
        *,
        predict: Callable[[Frame], _Result],
        write: Callable[[Frame, _Result], None],
        failed: Callable[[FailedFrame], None],
        stop: threading.Event,
        workers: int = 1,
    ) -> None:
        self._frames, self._predict, self._write, self._failed = frames, predict, write, failed
        self._stop = stop
        self._given_up, self._abandoned = threading.Event(), threading.Event()
        # Not `join`, which in Python 3.11 takes a thread for ended once it was interrupted in waiting for it.
        self._written = threading.Event()
        self._decoded: queue.Queue[Frame | FailedFrame | _End] = queue.Queue(QUEUED_FRAMES)
        # Results that workers are still at come later; the order is that of the frames.
        self._finished: queue.Queue[tuple[Frame, Future[_Result]] | _End] = queue.Queue(QUEUED_FRAMES)
        self._write_error: BaseException | None = None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dovit-worker") if workers > 1 else None
        self._free = threading.Semaphore(workers)

    def run(self) -> None:
        """Work until the source ends or `stop` is set; raises what any of the three steps raised.

        After KeyboardInterrupt what was begun is left as it is, and nobody writes any more.
        """
        reader = threading.Thread(target=self._read, name="dovit-reader", daemon=True)
        writer = threading.Thread(target=self._drain_all, name="dovit-writer", daemon=True)
        reader.start()
        writer.start()
        try:
            self._infer_and_wait()
        except KeyboardInterrupt:
            self._abandoned.set()
            raise
        finally:
            # Whoever takes the folder away next must not meet the writer in it.
            self._written.wait()
            if self._pool is not None:
                self._pool.shutdown(wait=not self._abandoned.is_set(), cancel_futures=True)
        if self._write_error is not None:
            raise self._write_error

    def _infer_and_wait(self) -> None:
        """Predict what there is; all of it is written then, also that before an error."""
        error: Exception | None = None
        try:
            self._infer()
        except Exception as caught:  # noqa: BLE001  raised below
            error = caught
        finally:
            # The reader is not waited for: a camera or stream may block it for as long as its driver likes.
            self._given_up.set()
        # There will be room: the writer takes what comes, even after an error.
        self._finished.put(_End())
        self._written.wait()
        if error is not None:
            raise error

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._frames:
                if not self._put_decoded(item):
                    return
        except BaseException as caught:  # noqa: BLE001  handed to the caller's thread, which raises it
            error = caught
        self._put_decoded(_End(error))

    def _put_decoded(self, item: Frame | FailedFrame | _End) -> bool:
        """Hand `item` on; False when the caller has given up."""
        while not self._given_up.is_set():
            try:
                self._decoded.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _infer(self) -> None:
        while not self._stop.is_set() and self._write_error is None:
            # First a free worker, then a frame: what is not begun need not be finished after `stop`. Both with a
            # timeout, so that `stop` is seen while a slow source gives nothing.
            if not self._free.acquire(timeout=_POLL_S):
                continue
            try:
                item = self._decoded.get(timeout=_POLL_S)
            except queue.Empty:
                self._free.release()
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            if isinstance(item, FailedFrame):
                self._failed(item)
                self._free.release()
            else:
                self._finished.put((item, self._begun(item)))

    def _begun(self, frame: Frame) -> Future[_Result]:
        """The result of a frame: there already, or to come from a worker."""
        if self._pool is not None:
            future = self._pool.submit(self._predict, frame)
        else:
            future = Future()
            future.set_result(self._predict(frame))
        future.add_done_callback(lambda _: self._free.release())
        return future

    def _drain_all(self) -> None:
        try:
            self._drain()
        finally:
            self._written.set()

    def _drain(self) -> None:
        """Write what comes; after an error go on taking, so that the caller never waits for room, and write nothing."""
        while not self._abandoned.is_set():
            try:
                item = self._finished.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                return
            frame, result = item
            if self._write_error is None and self._is_there(result):
                try:
                    self._write(frame, result.result())
                except BaseException as error:  # noqa: BLE001  raised in the caller's thread
                    self._write_error = error

    def _is_there(self, result: Future[_Result]) -> bool:
        """Wait for a result; False when the caller left meanwhile."""
        while not wait((result,), timeout=_POLL_S).done:
            if self._abandoned.is_set():
                return False
        return True
