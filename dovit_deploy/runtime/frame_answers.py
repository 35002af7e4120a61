"""How does each frame of a run get its answer, and which of them run dense, too?"""

from __future__ import annotations

from collections.abc import Callable

from dovit_deploy.bundle.interface import DENSE
from dovit_deploy.runtime.audit import Audit, Audited, AuditPlan, DriftAlarm
from dovit_deploy.runtime.between import Between, Filling
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.tasks import ImageResult, predictor_for
from dovit_deploy.runtime.workers import Workers
from dovit_deploy.sources.source import Frame


class FrameAnswers:
    """The answer to each frame; one that repeats the frame before takes the former's, bit for bit.

    Args:
        session: what computes, made for as much as runs `at_once`.
        settings: which may be others later.
        between: which frames of a video do not run, and what they take; None: all run.
    """

    def __init__(
        self, session: Session, settings: RunSettings, at_once: Workers, between: Between | None = None
    ) -> None:
        self.session, self.settings, self.at_once = session, settings, at_once
        self._predictor = predictor_for(session, windows_at_once=at_once.windows)
        self._filling = None if between is None else Filling(between)
        self._former: ImageResult | None = None

    def __call__(self, frame: Frame) -> ImageResult:
        filling, former = self._filling, self._former
        runs = filling is None or filling.runs(frame)
        # What was filled in is the answer to an earlier frame: a clip that is paused there would keep it for ever.
        if frame.still and former is not None and former.tokens.filled is None:
            return former.repeated(frame.decode_ms)
        if filling is not None and not runs:
            self._former = filling.filled(frame)
            return self._former
        self._former = self.run(frame, self.settings)
        if filling is not None:
            filling.note(self._former)
        return self._former

    def against(self, frame: Frame, result: ImageResult, dense: RunSettings) -> Audited:
        """What running `frame` with the settings `dense` shows of `result`."""
        other = self.run(frame, dense)
        return Audited(result.differing(other), other.timing.total - other.timing.decode)

    def run(self, frame: Frame, settings: RunSettings) -> ImageResult:
        """The answer with these settings, whatever came before."""
        return self._predictor.run(frame.rgb, settings, decode_ms=frame.decode_ms)


class Auditing:
    """Runs frames dense, too, and takes what they show in the order of the frames, at once where it may change the run.

    One image after another is looked at before the next one begins, so that the same frames give the same run; several
    at a time, which nothing changes, are looked at as they are written.

    Args:
        answers: to the frames.
        plan: None: nothing is audited.
        drifted: called with each alarm.
    """

    def __init__(
        self, answers: FrameAnswers, plan: AuditPlan | None, drifted: Callable[[DriftAlarm], None] | None
    ) -> None:
        session = answers.session
        self.audit = None if plan is None else Audit(plan, answers.settings)
        self._answers, self._drifted, self._at_once = answers, drifted, answers.at_once.images == 1
        self._dense = RunSettings.stop_nothing(session.bundle.manifest.spec, dense=True)
        self._last: Frame | None = None
        if self.audit is not None:
            # Loaded now: an audit must not cost a frame what loading takes.
            session.engine(DENSE)

    def audited(self, frame: Frame, result: ImageResult) -> Audited | None:
        """What running `frame` dense shows of `result`; None: it is not audited, or nothing was computed for it."""
        if self.audit is None or result.tokens.still or not self.audit.takes(frame):
            return None
        audited = self._answers.against(frame, result, self._dense)
        if self._at_once:
            self._observe(frame, audited)
        return audited

    def written(self, frame: Frame, audited: Audited | None) -> None:
        """A frame in its turn."""
        if audited is not None and not self._at_once:
            self._observe(frame, audited)

    def finish(self) -> None:
        """Whatever frames are left count, too."""
        if self.audit is not None and self._last is not None:
            self._report(self.audit.finish(self._last))

    def _observe(self, frame: Frame, audited: Audited) -> None:
        assert self.audit is not None
        self._last = frame
        self._report(self.audit.observe(frame, audited))
        self._answers.settings = self.audit.settings

    def _report(self, alarm: DriftAlarm | None) -> None:
        if alarm is not None and self._drifted is not None:
            self._drifted(alarm)
