"""What does a worker do? It holds a session, and computes row after row into parts."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dovit_deploy import errors
from dovit_deploy.batch.parts import (
    PartMarker,
    PartOrigin,
    PartWriter,
    answered_from_failure,
    answered_from_result,
    pixel_digest,
)
from dovit_deploy.batch.rows import BatchRow, Selected, opened_row, refuse_changed
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.engines.base import EngineOptions
from dovit_deploy.errors import BundleError, DovitError, SourceError
from dovit_deploy.machine import package_versions, this_machine
from dovit_deploy.record import Record
from dovit_deploy.runtime.audit import AuditPlan
from dovit_deploy.runtime.choices import bundle_digest
from dovit_deploy.runtime.frame_answers import FrameAnswers
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.workers import Workers
from dovit_deploy.sources.segments import NotAsIndexed, frames_of_segment
from dovit_deploy.sources.source import FailedFrame, Frame, Source
from dovit_deploy.sources.stills import with_stills_marked
from dovit_deploy.sources.video import VideoReader


@dataclass(frozen=True)
class WorkPlan:
    """What every worker is given: all that was chosen once, by the driver."""

    bundle: Path
    digest: str
    """Of what the bundle computes."""
    asked: str
    """Digest of how it is asked to: parts of other settings are never taken for these."""
    engine: str
    precision: str
    at_once: Workers
    settings: RunSettings
    options: EngineOptions
    audit: AuditPlan | None
    selected: Selected
    parts: Path


class RowOutcome(Record):
    """What came of a row."""

    row: str
    source: int
    frames: int = 0
    saved: float = 0.0
    """Sum over the frames of the fraction of the FLOPs that was saved."""
    seconds: float = 0.0
    worker: str = ""
    failure: str | None = None
    """Why its source cannot be read."""
    uncut: bool = False
    """The video cannot be cut after all: it is to be computed as a whole."""
    error: tuple[str, ...] | None = None
    """What ends the batch: the name of the error's class, and its lines."""

    def raised(self) -> DovitError | None:
        """The error that ends the batch, if there is one."""
        if self.error is None:
            return None
        kind = getattr(errors, self.error[0], errors.EnvironmentProblem)
        raised: DovitError = kind(*self.error[1:])
        return raised


def outcome_of(row: BatchRow, marker: PartMarker) -> RowOutcome:
    """What came of a row that is done."""
    return RowOutcome(
        row=row.name,
        source=row.source,
        frames=marker.frames,
        saved=marker.saved,
        seconds=marker.seconds,
        worker=marker.worker,
    )


class Worker:
    """A session and what it takes to compute rows with it.

    Raises:
        BundleError: the bundle is not the one that the driver has.
        DovitError: the session cannot be made here.
    """

    def __init__(self, plan: WorkPlan) -> None:
        self.plan = plan
        bundle = Bundle.open(plan.bundle)
        if bundle_digest(bundle) != plan.digest:
            raise BundleError(f"{plan.bundle}: another bundle lies there than the batch was begun with")
        at_once = plan.at_once
        self._session = Session(
            bundle,
            engine=plan.engine,
            precision=plan.precision,
            threads=at_once.threads,
            callers=at_once.callers,
            options=plan.options,
        )
        self._dense = RunSettings.stop_nothing(bundle.manifest.spec, dense=True)
        self._origin = PartOrigin(
            bundle=plan.digest, settings=plan.asked, features=this_machine().features, versions=package_versions()
        )

    def __call__(self, row: BatchRow) -> RowOutcome:
        """Compute a row into its part; an error of the tree is an outcome, everything else is a bug and raised."""
        try:
            return outcome_of(row, self._done(row))
        except NotAsIndexed:
            return RowOutcome(row=row.name, source=row.source, uncut=True)
        except SourceError as error:
            return RowOutcome(row=row.name, source=row.source, failure=str(error))
        except DovitError as error:
            return RowOutcome(row=row.name, source=row.source, error=(type(error).__name__, *error.lines))

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def _done(self, row: BatchRow) -> PartMarker:
        began, cpu = time.perf_counter(), time.process_time()
        writer = PartWriter(self.plan.parts, row.name)
        answers = FrameAnswers(self._session, self.plan.settings, self.plan.at_once)
        before: Frame | None = None
        first = last = ""
        saved = 0.0
        refuse_changed(row)
        with opened_row(row, self.plan.selected) as source:
            for frame in _frames(row, source):
                if isinstance(frame, FailedFrame):
                    writer.add(answered_from_failure(frame))
                    continue
                digest = last if frame.still else pixel_digest(frame.rgb)
                if row.segment is not None and frame.index < row.segment.first:
                    before, first, last = frame, digest, digest
                    continue
                # The frame before belongs to another row: it is computed where its answer is needed.
                if before is not None and frame.still:
                    answers(replace(before, still=False))
                before, last = None, digest
                result = answers(frame)
                audit = self.plan.audit
                audits = audit is not None and audit.takes(frame.index) and not result.tokens.still
                audited = answers.against(frame, result, self._dense) if audits else None
                writer.add(answered_from_result(frame, digest, result, audited))
                saved += result.tokens.flops_saved
        refuse_changed(row)
        marker = PartMarker(
            row=row.name,
            fingerprint=row.fingerprint,
            origin=self._origin,
            files=writer.flush(),
            frames=writer.frames,
            first=first,
            last=last,
            saved=saved,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            worker=f"{platform.node()}-{os.getpid()}",
        )
        writer.finish(marker)
        return marker


def _frames(row: BatchRow, source: Source) -> Iterator[Frame | FailedFrame]:
    """The frames of a row; of a segment the one before it first, if there is one."""
    if row.images:
        for frame in source:
            yield replace(frame, index=row.images[frame.index].index)
        return
    if row.segment is None:
        yield from with_stills_marked(source)
        return
    if not isinstance(source, VideoReader):
        raise NotAsIndexed(source.name)
    yield from with_stills_marked(frames_of_segment(source, row.segment))


def in_this_process(plan: WorkPlan, rows: Iterable[BatchRow]) -> Iterator[RowOutcome]:
    """Row after row, here."""
    worker = Worker(plan)
    try:
        yield from map(worker, rows)
    finally:
        worker.close()
