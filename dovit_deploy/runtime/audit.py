"""Does a run still agree with the dense model? A random part of its frames runs dense, too, and bets are kept on it.

Which frames is drawn by their numbers, so that it is the same every time; every n-th would meet the same frame of a
video's groups again and again. Of a stream the audited frames of ten seconds are one value, their mean: within a hard
scene the model differs for seconds on end, and frame by frame that would be an alarm. Images are a value each.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from dovit_deploy.betting import DriftEvidence
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.calibration import SequenceTest
from dovit_deploy.errors import UsageError
from dovit_deploy.runtime.settings import RunSettings, short_thresholds
from dovit_deploy.sources.source import Frame

DriftAction = Literal["warn", "tighten", "dense"]
DRIFT_ACTIONS: tuple[DriftAction, ...] = get_args(DriftAction)
LimitSource = Literal["calibration", "default"]

DEFAULT_MAX_DISAGREE, DEFAULT_CONFIDENCE = 0.05, 0.95
"""Of bundles whose calibration promises nothing."""

ROUND_SECONDS = 10.0
"""Of a stream, of which the audited frames are one value."""

HALVINGS = 3
"""Settings that follow where no tested sequence says which: at each, half of what stops a token is left."""

SEED = 0


@dataclass(frozen=True)
class AuditPlan:
    """How a run is audited, and what it does about drift."""

    every: int
    """One of so many frames runs dense, too."""
    max_disagree: float
    """The share of the pixels that may differ, on average."""
    confidence: float
    """That there is no alarm at all while it does not."""
    limit_from: LimitSource
    on_drift: DriftAction
    next_settings: tuple[RunSettings, ...]
    """What is run after each alarm, one after another; none of a run that only warns."""
    stream: bool
    """Frames have a time, and those that follow each other are alike."""

    def takes(self, index: int) -> bool:
        """Whether frame number `index` is audited."""
        drawn = int.from_bytes(hashlib.blake2b(f"{SEED} {index}".encode(), digest_size=8).digest())
        return drawn * self.every < 1 << 64

    def alarm_at(self, alarms: int) -> float:
        """The wealth that is an alarm after so many others: each may be false with half of what is left of 1 - C."""
        # 0.95 leaves 0.05, not 0.05000000000000004.
        allowed = round(1 - self.confidence, 12)
        # A run that only warns, or goes on densely, has one alarm at most.
        return 1 / allowed if self.on_drift != "tighten" else 2 ** (alarms + 1) / allowed


def audit_plan(
    bundle: Bundle, settings: RunSettings, *, every: int, on_drift: DriftAction, own_thresholds: bool, stream: bool
) -> AuditPlan:
    """How a run of `bundle` is audited.

    Args:
        bundle: whose calibration may promise something.
        settings: of the run.
        every, on_drift, stream: see `AuditPlan`.
        own_thresholds: they are the bundle's.

    Raises:
        UsageError: a model without gates, or without a dense network of its weights.
        BundleError: its calibration cannot be read.
    """
    manifest = bundle.manifest
    if not manifest.spec.gates or not manifest.spec.has_dense:
        raise UsageError(
            f"{manifest.name} is a model without gates: it stops no tokens, so --audit has nothing to compare"
        )
    calibration = bundle.calibration()
    budget = None if calibration is None else calibration.budget
    limit, confidence = DEFAULT_MAX_DISAGREE, DEFAULT_CONFIDENCE
    limit_from: LimitSource = "default"
    # A limit without a confidence is a mean on some images, and the mean on others is above it as often as not.
    if budget is not None and budget.kind == "max-disagree" and budget.confidence is not None:
        limit, confidence, limit_from = budget.limit, budget.confidence, "calibration"
    following: tuple[RunSettings, ...] = ()
    if on_drift != "warn":
        dense = RunSettings.stop_nothing(manifest.spec, dense=True)
        tested = calibration.test if calibration is not None and own_thresholds else None
        following = (*(_tighter(settings, tested) if on_drift == "tighten" else ()), dense)
    return AuditPlan(every, limit, confidence, limit_from, on_drift, following, stream)


def _tighter(settings: RunSettings, tested: SequenceTest | None) -> tuple[RunSettings, ...]:
    """More and more cautious settings: those of a tested sequence, else half of the way to stopping nothing each."""
    if tested is not None:
        steps = reversed(tested.sequence[: tested.boldest])
        rows = [np.array(step.thresholds, dtype=np.float32) for step in steps]
        tables = [np.repeat(row[:, None], settings.thresholds.shape[1], axis=1) for row in rows]
    else:
        tables = [1 - (1 - settings.thresholds) * np.float32(0.5**number) for number in range(1, HALVINGS + 1)]
    return tuple(replace(settings, thresholds=table) for table in tables)


@dataclass(frozen=True)
class Audited:
    """What the dense run of one frame showed."""

    differing: float
    """Share of its pixels."""
    ms: float
    """Of the dense run, from pixels to classes; in no latency of the frame."""


@dataclass(frozen=True)
class DriftAlarm:
    """That the pixels of a run differ from the dense answer by more than is allowed."""

    frame: int
    """Number of the last frame that was looked at."""
    time_s: float
    audited: int
    """Frames until then."""
    differing: float
    """Mean share of the last values, about as many as it took."""
    evidence: float
    max_disagree: float
    settings: RunSettings
    """Those that were run."""
    following: RunSettings | None
    """What is run from now on; None: the same."""


@dataclass
class Audit:
    """The audit of one run as it goes on; several threads may ask, one reports."""

    plan: AuditPlan
    settings: RunSettings
    """What is run now."""
    frames: int = 0
    """That were audited."""
    alarms: list[DriftAlarm] = field(default_factory=list)
    evidence: DriftEvidence = field(init=False)
    _open: list[float] = field(default_factory=list)
    """Of the frames of the ten seconds that are not over."""
    _round: int = 0
    _recent: list[float] = field(default_factory=list)
    _sum: float = 0.0
    _seconds: float = 0.0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.evidence = DriftEvidence(self.plan.max_disagree)

    def takes(self, frame: Frame) -> bool:
        """Whether this frame runs dense, too: by its number, and never once everything does."""
        return not self.settings.dense and self.plan.takes(frame.index)

    def observe(self, frame: Frame, audited: Audited) -> DriftAlarm | None:
        """Take what a frame showed, in the order of the frames; an alarm where that is enough."""
        with self._guard:
            before = self.settings
            alarm = self._closed(frame) if self.plan.stream and self._over(frame) else None
            self.frames += 1
            self._sum += audited.differing
            self._seconds += audited.ms / 1e3
            # What the settings before did is no evidence against those that follow.
            if self.settings is before:
                self._open.append(audited.differing)
            # An image is a value of its own at once.
            return alarm if self.plan.stream else self._closed(frame)

    def finish(self, last: Frame) -> DriftAlarm | None:
        """The end of the source: also what the last ten seconds show."""
        with self._guard:
            return self._closed(last)

    @property
    def watching(self) -> bool:
        """Whether an alarm may still come."""
        return not self.settings.dense and (not self.alarms or self.plan.on_drift == "tighten")

    def facts(self) -> dict[str, Any]:
        """What `summary.json` says."""
        plan = self.plan
        return {
            "every": plan.every,
            "max_disagree": plan.max_disagree,
            "confidence": plan.confidence,
            "limit_from": plan.limit_from,
            "on_drift": plan.on_drift,
            "frames": self.frames,
            "differing": self._sum / self.frames if self.frames else None,
            "values": self.evidence.values,
            "evidence": self.evidence.wealth,
            "alarm_at": plan.alarm_at(len(self.alarms)) if self.watching else None,
            "seconds": self._seconds,
            "alarms": [_alarm_facts(alarm) for alarm in self.alarms],
        }

    def _over(self, frame: Frame) -> bool:
        """Whether the ten seconds of the open frames have ended before this one."""
        before, self._round = self._round, int(float(frame.time_s) // ROUND_SECONDS)
        return before != self._round

    def _closed(self, frame: Frame) -> DriftAlarm | None:
        """Bet on the mean of the open frames."""
        if not self._open or not self.watching:
            self._open.clear()
            return None
        value = float(np.mean(self._open))
        self._open.clear()
        self._recent.append(value)
        wealth = self.evidence.add(value)
        if wealth < self.plan.alarm_at(len(self.alarms)):
            return None
        number, following = len(self.alarms), self.plan.next_settings
        alarm = DriftAlarm(
            frame=frame.index,
            time_s=float(frame.time_s),
            audited=self.frames,
            differing=_highest_mean(self._recent),
            evidence=wealth,
            max_disagree=self.plan.max_disagree,
            settings=self.settings,
            following=following[number] if number < len(following) else None,
        )
        self.alarms.append(alarm)
        if alarm.following is not None:
            self.settings = alarm.following
            # Other settings, another question.
            self.evidence, self._recent = DriftEvidence(self.plan.max_disagree), []
        return alarm


def _highest_mean(values: Sequence[float]) -> float:
    """The mean from where on it is the highest, of at least three values where there are as many: since the change."""
    backwards = np.cumsum(values[::-1]) / np.arange(1, len(values) + 1)
    return float(backwards[min(2, len(values) - 1) :].max())


def _alarm_facts(alarm: DriftAlarm) -> dict[str, Any]:
    return {
        "frame": alarm.frame,
        "time_s": alarm.time_s,
        "audited": alarm.audited,
        "differing": alarm.differing,
        "evidence": alarm.evidence,
        "thresholds": short_thresholds(alarm.settings.thresholds),
    }
