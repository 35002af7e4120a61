"""Which engine and precision is the fastest on these frames, and does it answer as the standard one does?

Each candidate is run beside the standard one, interleaved, and its speed is the median of the ratios of pairs:

    round, frame:   standard, candidate   candidate, standard   ...

The winner is checked before it is trusted: the standard one's decisions are replayed in it, and by the rule of
runtime/trace.py it may decide otherwise only where its precision explains that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from dovit_deploy.bundle.interface import LOGITS
from dovit_deploy.bundle.parity import PrecisionParity
from dovit_deploy.engines.registry import AUTOMATIC, engine_entry
from dovit_deploy.errors import DovitError
from dovit_deploy.runtime.results import Answer, Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.trace import (
    TOLERANCE,
    Setting,
    Trace,
    float_parity,
    gate_parity,
    settings_from_images,
    trace_from_session,
)

MARGIN, SURE_PAIRS = 1.05, 3
"""A choice must be so many times as fast as the standard, over at least so many pairs; ..."""
MARGIN_OF_FEW = 1.25
"""... over fewer, as a large model leaves time for, so many times: one pair is easily 10 % wrong."""
MOST_ROUNDS = 6
DENSE_NEAR = 0.7
"""A dense run of the fastest is timed where the standard's is at least so many times as fast as its dynamic one:
elsewhere no CPU engine turns that round."""
LEEWAY = 2.0
"""Of a stated confidence error: another image may be worse than those it was measured on."""
UNSTATED = 0.1
"""The confidence error that is allowed to a precision below fp32 of which the bundle states none."""
FP32 = "fp32"
FAILURES = (DovitError, RuntimeError, OSError, MemoryError)
"""What a candidate may fail with: runtimes raise RuntimeError of their own, and what one engine needs of the temporary
folder or of memory another may not."""


@dataclass(frozen=True)
class Candidate:
    """An engine at a precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


STANDARD = Candidate(AUTOMATIC[0], FP32)
"""What runs where nothing else is chosen, and what every other is compared with."""


@dataclass(frozen=True)
class Timed:
    """A candidate's speed, dynamic or dense."""

    candidate: Candidate
    dense: bool
    ratio: float
    """How many times as fast as the standard: median of the pairs."""
    pairs: int
    agreement: float
    """Share of the answers, 0..1, that are the standard's, both dynamic or both dense."""
    pays_from: int = 0
    """Frames from which it has made up for what it takes to start."""

    @property
    def clearly_faster(self) -> bool:
        """By the margin that this many pairs need."""
        return self.ratio >= (MARGIN if self.pairs >= SURE_PAIRS else MARGIN_OF_FEW)

    def __str__(self) -> str:
        return f"{self.candidate}{' dense' if self.dense else ''}"


@dataclass(frozen=True)
class Terms:
    """What all candidates run, and how long it may take."""

    pixels: tuple[Pixels, ...]
    """Frames (1, 3, H, W), at least one."""
    settings: RunSettings
    dense: RunSettings | None
    """The settings of a dense run, where that is a choice too."""
    seconds: float
    most_lost: float | None
    """Points of the answers that a precision of which the bundle states nothing may lose; None: the user chose it."""
    stated: dict[Candidate, PrecisionParity]
    """What the bundle says of precisions below fp32."""


class Contestants:
    """Sessions by candidate, each opened when it is first asked for.

    Args:
        opened: makes a session.
        remark: takes a line for the user about a candidate that does not work here.
    """

    def __init__(self, opened: Callable[[Candidate], Session], remark: Callable[[str], None]) -> None:
        self._opened, self._remark = opened, remark
        self._sessions: dict[Candidate, Session] = {}
        self.disturbed = False
        """One was left out for what may pass: no room on the disk or in memory."""

    def session(self, candidate: Candidate) -> Session:
        """The session of `candidate`; raises what making it raises."""
        if candidate not in self._sessions:
            self._sessions[candidate] = self._opened(candidate)
        return self._sessions[candidate]

    def leave_out(self, candidate: Candidate, why: object) -> None:
        """Close it, and say why."""
        self.close(candidate)
        self.disturbed = self.disturbed or isinstance(why, OSError | MemoryError)
        self._remark(f"{candidate} is left out: {str(why).splitlines()[0] if str(why) else type(why).__name__}")

    def close(self, candidate: Candidate) -> None:
        """Free its session, if it has one."""
        if candidate in self._sessions:
            self._sessions.pop(candidate).close()

    def close_all_but(self, winner: Candidate | None) -> None:
        """Free all sessions, or all others."""
        for candidate in list(self._sessions):
            if candidate != winner:
                self.close(candidate)


def contest(
    candidates: Sequence[Candidate],
    contestants: Contestants,
    terms: Terms,
    *,
    standard: Candidate = STANDARD,
    clock: Callable[[], float] = perf_counter,
) -> tuple[list[Timed], bool]:
    """Time every candidate while there is time, then the standard's dense run, and where that is near the fastest's.

    Only the sessions of the standard and of the fastest stay open: those of all might not fit into memory.

    Returns:
        What was timed, the fastest first; and whether there was time for everything.
    """
    end, slowest_start = clock() + terms.seconds, 0.0
    results: list[Timed] = []
    turns = deque((candidate, terms.settings) for candidate in candidates)
    if terms.dense is not None:
        turns.append((standard, terms.dense))
    while turns:
        begun = clock()
        if begun + slowest_start >= end:
            return results, False
        candidate, settings = turns.popleft()
        try:
            contestants.session(candidate)
            started = clock()
            limits = TimeLimits(started - begun, started + (end - started) / (len(turns) + 1), end)
            timed = _timed(candidate, standard, settings, contestants, terms, limits, clock)
        except FAILURES as error:
            if candidate == standard:
                raise
            contestants.leave_out(candidate, error)
            continue
        slowest_start = max(slowest_start, started - begun)
        if _accurate(timed, contestants, terms):
            results = sorted((*results, timed), key=lambda entry: -entry.ratio)
        for entry in results[1:]:
            if entry.candidate not in (standard, results[0].candidate):
                contestants.close(entry.candidate)
        if candidate == standard and terms.dense is not None and _dense_is_near(timed, results[0]):
            turns.append((results[0].candidate, terms.dense))
    return results, True


def _dense_is_near(standard: Timed, fastest: Timed) -> bool:
    """The dense run of the fastest, which is not the standard, may be faster still."""
    other = fastest.candidate != standard.candidate
    return other and (standard.ratio >= DENSE_NEAR or engine_entry(fastest.candidate.engine).on_gpu)


def winner_of(
    results: list[Timed], contestants: Contestants, terms: Terms, *, standard: Candidate = STANDARD
) -> Timed | None:
    """The fastest that is clearly faster than the standard and answers as it does; None: the standard stays.

    Those that are not to be trusted are taken out of `results`.
    """
    for entry in tuple(results):
        if not entry.clearly_faster:
            return None
        # Its own dense graph was verified at the export.
        if entry.candidate == standard:
            return entry
        try:
            session = contestants.session(entry.candidate)
            reason = why_distrusted(session, contestants.session(standard), entry, terms)
        except FAILURES as error:
            reason = str(error)
        if reason is None:
            return entry
        contestants.leave_out(entry.candidate, reason)
        results.remove(entry)
    return None


@dataclass(frozen=True)
class TimeLimits:
    """Of one candidate, in seconds of the clock."""

    start: float
    """What it took to load."""
    until: float
    """No further round is begun, but for those that make sure."""
    end: float
    """No further round is begun."""


def _timed(
    candidate: Candidate,
    standard: Candidate,
    settings: RunSettings,
    contestants: Contestants,
    terms: Terms,
    limits: TimeLimits,
    clock: Callable[[], float],
) -> Timed:
    session, standard_session = contestants.session(candidate), contestants.session(standard)
    wanted: dict[int, Answer] = {}
    given: dict[int, Answer] = {}

    def run_standard(frame: int) -> None:
        wanted[frame] = standard_session.run_one(terms.pixels[frame], terms.settings)[0]

    def run(frame: int) -> None:
        given[frame] = session.run_one(terms.pixels[frame], settings)[0]

    rounds = paired_rounds(run_standard, run, frames=len(terms.pixels), limits=limits, clock=clock)
    if settings is terms.dense:
        # What stopping tokens costs is the bundle's to state; a dense run is held to the standard's dense run.
        wanted = {frame: standard_session.run_one(terms.pixels[frame], settings)[0] for frame in given}
    agreement, pays_from = agreement_of(wanted, given), rounds.pays_from(limits.start)
    return Timed(candidate, settings.dense, rounds.ratio, len(rounds.pairs), agreement, pays_from)


@dataclass(frozen=True)
class Rounds:
    """Seconds of a standard and of another, run by run."""

    first: float
    """Of the other's first run."""
    pairs: list[tuple[float, float]]
    """Of both, round by round."""

    @property
    def ratio(self) -> float:
        """How many times as fast as the standard: median of the pairs."""
        return float(np.median([standard / other for standard, other in self.pairs]))

    def pays_from(self, start: float) -> int:
        """Frames from which the other, which took `start` seconds to load, is done before the standard."""
        standard, other = (float(np.median(column)) for column in zip(*self.pairs, strict=True))
        late = start + self.first - other
        return math.ceil(late / (standard - other)) if other < standard else 0


def paired_rounds(
    standard: Callable[[int], None],
    other: Callable[[int], None],
    *,
    frames: int,
    limits: TimeLimits,
    clock: Callable[[], float],
) -> Rounds:
    """Run both on frame after frame, at least one round; a round that has begun is finished.

    Args:
        standard, other: run the frame of a number, from 0 to `frames` - 1.
        frames: how many there are.
        limits: when to stop.
        clock: in seconds.
    """

    def seconds(run: Callable[[int], None], frame: int) -> float:
        begun = clock()
        run(frame)
        return max(clock() - begun, 1e-9)

    first, pairs = 0.0, []
    for number in range(MOST_ROUNDS):
        if number and clock() >= (limits.until if number >= SURE_PAIRS else limits.end):
            break
        frame = number % frames
        # The first run of a frame allocates, and compiles what its number of tokens needs.
        if number < frames:
            standard(frame)
            cold = seconds(other, frame)
            first = first or cold
        # Every frame meets both orders.
        if number // frames % 2 == 0:
            before, after = seconds(standard, frame), seconds(other, frame)
        else:
            after, before = seconds(other, frame), seconds(standard, frame)
        pairs.append((before, after))
    return Rounds(first, pairs)


def agreement_of(wanted: dict[int, Answer], given: dict[int, Answer]) -> float:
    """Share of the answers, over frames, that find the same class: cells of the logits' grid, or whole images."""
    same = [np.asarray(wanted[frame].argmax(axis=1) == given[frame].argmax(axis=1)).ravel() for frame in wanted]
    return float(np.concatenate(same).mean())


def _accurate(timed: Timed, contestants: Contestants, terms: Terms) -> bool:
    """The candidate's answers on these frames differ by no more than is allowed; else it is left out."""
    if terms.most_lost is None or timed.candidate.precision == FP32:
        return True
    stated = terms.stated.get(timed.candidate)
    # What the bundle states of it is within the budget; beyond that, other images differ as much again.
    allowed = terms.most_lost + (0.0 if stated is None else 100 * (1 - stated.agreement))
    if 100 * (1 - timed.agreement) <= allowed:
        return True
    contestants.leave_out(timed.candidate, f"only {timed.agreement:.1%} of its answers are the same")
    return False


# May the fastest be trusted?


def why_distrusted(session: Session, standard: Session, entry: Timed, terms: Terms) -> str | None:
    """Why the answers of `session` on this machine are not to be trusted; None: they are."""
    exact, spec = entry.candidate.precision == FP32, session.bundle.manifest.spec
    if entry.dense or terms.settings.dense or not spec.gates:
        settings = terms.dense if entry.dense and terms.dense is not None else terms.settings
        reasons = (
            _why_unlike(standard.run_one(pixels, settings)[0], session.run_one(pixels, settings)[0], exact=exact)
            for pixels in terms.pixels
        )
        return next(filter(None, reasons), None)
    limits = _limits(entry.candidate, terms, gates=len(spec.gates))
    images = [(str(number), pixels) for number, pixels in enumerate(terms.pixels)]
    for setting in settings_from_images(standard, images):
        trace = trace_from_session(standard, setting)
        replayed = trace_from_session(session, setting, replay=trace.index)
        reason = _why_decided_otherwise(trace, replayed, setting, spec.extra_tokens, limits)
        reason = reason or _why_unlike(trace.logits, replayed.logits, exact=exact)
        if reason is not None:
            return reason
    return None


def _limits(candidate: Candidate, terms: Terms, *, gates: int) -> tuple[float, ...]:
    """How far a confidence of each gate may be off."""
    if candidate.precision == FP32:
        return (TOLERANCE,) * gates
    stated = terms.stated.get(candidate)
    if stated is None or len(stated.confidence_error) != gates:
        return (UNSTATED,) * gates
    return tuple(LEEWAY * error for error in stated.confidence_error)


def _why_decided_otherwise(
    trace: Trace, replayed: Trace, setting: Setting, extra: int, limits: Sequence[float]
) -> str | None:
    for gate, limit in enumerate(limits):
        unexplained = gate_parity(trace, replayed, gate, setting, extra, limit=limit).unexplained
        if unexplained:
            return f"on this machine {unexplained} decisions of gate {gate} differ without an explanation"
    return None


def _why_unlike(wanted: Any, given: Any, *, exact: bool) -> str | None:  # noqa: ANN401  arrays of logits
    if not np.isfinite(given).all():
        return "on this machine its answers are not finite"
    parity = float_parity(LOGITS, wanted, given)
    if exact and not parity.error <= parity.allowed:
        return f"on this machine its answers differ by {parity.error:.3g}, allowed {parity.allowed:.3g}"
    return None
