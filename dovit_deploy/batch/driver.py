"""Who sees to it that every row is computed once and every source is merged once? The driver, whatever is killed.

rows that have no marker -> workers -> markers; a source whose rows all have one -> the writers of `run` -> its result
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from typing import Protocol

from dovit_deploy.batch.folder import BatchFolder, MergeNote
from dovit_deploy.batch.parts import PartMarker, PartOrigin, answers_of
from dovit_deploy.batch.recorded import NotAsRecorded, RecordedAnswers, frames_as_recorded
from dovit_deploy.batch.rows import BatchRow, BatchSource, refuse_changed
from dovit_deploy.batch.work import RowOutcome, WorkPlan, outcome_of
from dovit_deploy.errors import Interrupted, SourceError
from dovit_deploy.runtime.audit import DriftAlarm
from dovit_deploy.runtime.run import RunPlan, run_source
from dovit_deploy.runtime.session import Session


class Execute(Protocol):
    """Has rows computed by workers."""

    def __call__(self, plan: WorkPlan, rows: Sequence[BatchRow]) -> Iterator[RowOutcome | None]:
        """What came of each row, in any order; None where there is nothing new for a while."""


@dataclass
class BatchOutcome:
    """What came of a batch."""

    merged: dict[int, MergeNote] = field(default_factory=dict)
    """Number of a source -> what is known of its result, which is whole."""
    failed: dict[int, str] = field(default_factory=dict)
    """Number of a source -> why it has no result."""
    busy: dict[str, float] = field(default_factory=dict)
    """Worker -> seconds that it computed."""


@dataclass(frozen=True)
class BatchCalls:
    """Whom the driver calls."""

    advance: Callable[[int, float, bool], None]
    """With frames that were computed, the sum of the fractions of FLOPs that they saved, and whether that was before
    this batch went on."""
    remark: Callable[[str], None]
    """With a line about what went otherwise than planned."""
    drifted: Callable[[DriftAlarm], None]
    merging: Callable[[BatchSource], RunPlan]
    """The plan of a source's result."""
    record: Callable[[BatchSource, Sequence[PartMarker]], None]
    """Keeps the figures of a source's frames."""


class Driver:
    """One batch.

    Args:
        folder: of the batch.
        sources: all of them, divided.
        work: what workers are given.
        session: of the same bundle, for what a run says of it; it computes nothing.
        execute: has rows computed.
        calls: whom to call.
        stop: when set, the batch ends with what is done.
    """

    def __init__(
        self,
        folder: BatchFolder,
        sources: Sequence[BatchSource],
        work: WorkPlan,
        session: Session,
        *,
        execute: Execute,
        calls: BatchCalls,
        stop: threading.Event,
    ) -> None:
        self._folder, self._work, self._session = folder, work, session
        self._execute, self._calls, self._stop = execute, calls, stop
        self._sources = {source.number: source for source in sources}
        self._rows = {source.number: source.rows for source in sources}
        self._missing: dict[int, set[str]] = {}
        self.outcome = BatchOutcome()

    def run(self) -> BatchOutcome:
        """Compute and merge all sources.

        Raises:
            Interrupted: `stop` was set.
            OutputFailed, EnvironmentProblem: as of a run; what is done is kept.
        """
        rows = [row for source in self._sources.values() for row in self._left_of(source)]
        while rows:
            again = list[BatchRow]()
            for outcome in self._execute(self._work, rows):
                if self._stop.is_set():
                    raise Interrupted("stopped")
                if outcome is not None:
                    again += self._taken(outcome)
            rows = again
        return self.outcome

    def _left_of(self, source: BatchSource) -> Sequence[BatchRow]:
        """The rows of a source that are not done; one that is complete is merged."""
        if self._done_before(source):
            return ()
        if self._folder.is_uncut(source):
            self._rows[source.number] = (source.whole,)
        left = []
        for row in self._rows[source.number]:
            marker = self._folder.marker(row)
            if marker is None:
                left.append(row)
            else:
                self._count(outcome_of(row, marker), before=True)
        self._missing[source.number] = {row.name for row in left}
        return left or self._merge_or_again(source)

    def _done_before(self, source: BatchSource) -> bool:
        """Whether a source was merged before the batch was ended."""
        note = self._folder.note(source)
        if note is None:
            # Without its note a result is one that was cut short; the parts are all there still.
            self._folder.remove_result(source)
            return False
        self.outcome.merged[source.number] = note
        self._calls.advance(note.frames, note.saved, True)
        self._folder.clear(self._rows[source.number])
        return True

    def _taken(self, outcome: RowOutcome) -> Sequence[BatchRow]:
        """Take what came of a row; the rows that are to be computed on top."""
        error = outcome.raised()
        if error is not None:
            raise error
        source = self._sources[outcome.source]
        missing = self._missing[source.number]
        # Of a source that failed or is begun again, other rows were under way.
        if outcome.row not in missing:
            return ()
        if outcome.failure is not None:
            self._fail(source, outcome.failure)
            return ()
        if outcome.uncut:
            return self._begin_whole(source, "its frames are not those that its packets promise")
        self._count(outcome, before=False)
        missing.discard(outcome.row)
        return () if missing else self._merge_or_again(source)

    def _count(self, outcome: RowOutcome, *, before: bool) -> None:
        self.outcome.busy[outcome.worker] = self.outcome.busy.get(outcome.worker, 0.0) + outcome.seconds
        self._calls.advance(outcome.frames, outcome.saved, before)

    def _fail(self, source: BatchSource, message: str) -> None:
        self.outcome.failed[source.number] = message
        self._missing[source.number] = set()
        self._calls.remark(f"failed: {message}")
        self._folder.clear(self._rows[source.number])

    def _begin_whole(self, source: BatchSource, why: str) -> Sequence[BatchRow]:
        """Compute a video as a whole, since it cannot be cut."""
        self._calls.remark(f"{source.text}: computed as a whole: {why}")
        self._folder.note_uncut(source)
        self._rows[source.number] = (source.whole,)
        self._missing[source.number] = {source.whole.name}
        return (source.whole,)

    def _merge_or_again(self, source: BatchSource) -> Sequence[BatchRow]:
        """Merge a source whose rows are all done; the rows that are to be computed on top, where they do not fit."""
        rows = self._rows[source.number]
        markers = [marker for row in rows if (marker := self._folder.marker(row)) is not None]
        try:
            for row in rows:
                refuse_changed(row)
            if len(markers) != len(rows):
                raise SourceError(f"{source.text}: parts of it are gone; run the batch again")
            if any(former.last != marker.first for former, marker in pairwise(markers) if marker.first):
                return self._begin_whole(source, "neighbouring segments do not decode their common frame alike")
            self._merge(source, markers)
        except NotAsRecorded as error:
            # Nothing was changed, so it is the cut that changed the frames.
            if len(rows) > 1 and rows[0].segment is not None and _unchanged(rows):
                return self._begin_whole(source, "its segments do not decode as the whole does")
            self._fail(source, str(error))
        except SourceError as error:
            self._fail(source, str(error))
        return ()

    def _merge(self, source: BatchSource, markers: Sequence[PartMarker]) -> None:
        self._calls.record(source, markers)
        plan = self._calls.merging(source)
        answered = chain.from_iterable(map(partial(answers_of, self._work.parts), markers))
        answers = RecordedAnswers(self._session, plan.settings, plan.at_once, answered)
        expected = sum(marker.frames for marker in markers)
        with self._work.selected.opened(source.text) as frames:
            done = run_source(
                self._session,
                frames,
                replace(plan, answers=answers),
                # Half of a source is no result: what ends the frames is an error.
                stop=threading.Event(),
                advance=lambda saved: None,
                failed=self._calls.remark,
                frames=frames_as_recorded(frames, name=source.text, expected=expected, stop=self._stop),
                drifted=self._calls.drifted,
            )
            if done.ended is not None:
                raise done.ended
            note = MergeNote(
                frames=done.summary["frames"],
                saved=sum(marker.saved for marker in markers),
                failed=len(done.failures),
                ended_early=frames.ended_early,
                mixed=_unlike([marker.origin for marker in markers]),
            )
            self._folder.keep_note(source, note)
            self.outcome.merged[source.number] = note
            for line in (*frames.warnings, *done.warnings):
                self._calls.remark(f"note: {line}")
        if note.mixed is not None:
            self._calls.remark(
                f"{source.text}: its parts were computed with different {note.mixed}; last bits may differ"
            )
        self._folder.clear(self._rows[source.number])


def _unlike(origins: Sequence[PartOrigin]) -> str | None:
    """In what the machines or versions differ that computed a source; None: in nothing."""
    facts = {"instruction sets": "features", "versions of packages": "versions"}
    unlike = [name for name, fact in facts.items() if len({str(getattr(origin, fact)) for origin in origins}) > 1]
    return " and ".join(unlike) or None


def _unchanged(rows: Sequence[BatchRow]) -> bool:
    try:
        for row in rows:
            refuse_changed(row)
    except SourceError:
        return False
    return True
