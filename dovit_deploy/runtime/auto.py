"""Which engine and precision runs this source? `--engine auto`: the fastest here within the accuracy the bundle states.

    remembered (choices.py)? else measured on the first frames (contest.py), if the source is long; else the standard

The standard is ONNX Runtime in fp32: exact, and the same on every machine. A choice away from it needs a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter

from dovit_deploy import packages
from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.parity import MAX_DROP, PrecisionParity
from dovit_deploy.engines.base import NONE_GIVEN, EngineOptions
from dovit_deploy.engines.registry import AUTOMATIC, engine_entry
from dovit_deploy.errors import BundleError, UsageError
from dovit_deploy.machine import this_machine
from dovit_deploy.runtime.choices import ChoiceCache, EngineChoice, Situation, bundle_digest
from dovit_deploy.runtime.contest import (
    FAILURES,
    FP32,
    STANDARD,
    Candidate,
    Contestants,
    Terms,
    Timed,
    contest,
    winner_of,
)
from dovit_deploy.runtime.remembered import Here
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from dovit_deploy.runtime.transforms import whole_input
from dovit_deploy.runtime.workers import Workers, workers_for
from dovit_deploy.sources.ahead import FramesAhead
from dovit_deploy.sources.source import Source

LONGEST_S, SHORTEST_S = 5.0, 2.0
"""Of the measurement, with loading the engines. It takes no longer than the run would, and in less nothing is found."""
FOR_TRUST_S = 1.0
"""Of these, what checking the winner may take."""
FEWEST_FRAMES = 30
"""Of a source that is measured on."""
FRAMES_AHEAD = 4
"""Looked at; the first and the last of them are measured on."""

PRECISIONS = {
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
"""Precision -> features of CPUs that compute in it, the fastest first; without one it would be slow or imitated."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for, as far as it bears on the choice."""

    settings: RunSettings
    thresholds: tuple[float, ...] | None = None
    """As given; None: the bundle's own, and a dense run is a choice too."""
    precision: str | None = None
    """As given: the choice is among engines that compute in it. None: it is chosen too."""
    threads: int | None = None
    images: int | None = None
    """How many there are, for they may be run side by side; None: frames of one stream."""
    windows: int = 1
    """How many an image has, for the same reason."""
    options: EngineOptions = NONE_GIVEN
    deadline: bool = False
    """Tokens will be stopped to keep one: no dense run is a choice, and nothing on a GPU."""
    audited: bool = False
    """Compared with dense: no dense run is a choice."""
    every: int = 1
    """One of so many frames runs."""

    def at_once(self, engine: str) -> Workers:
        """What runs side by side in `engine`."""
        return workers_for(engine, images=self.images, windows=self.windows, threads=self.threads)

    def frames_to_run(self, source: Source) -> int | None:
        """How many of a source's frames run; None where nobody knows its length."""
        return None if source.count is None else -(-source.count // self.every)

    def run_in(self, engine: str, session: Session, settings: RunSettings | None = None) -> Chosen:
        """This in `session` of `engine`, which was made for it; `settings` instead of those wanted."""
        return Chosen(session, settings or self.settings, self.at_once(engine))


@dataclass(frozen=True)
class Chosen:
    """What runs the source."""

    session: Session
    settings: RunSettings
    """As wanted, or dense, where that is faster."""
    at_once: Workers


def chosen_session(
    bundle: Bundle,
    source: Source,
    ahead: FramesAhead,
    wanted: Wanted,
    *,
    remark: Callable[[str], None],
    cache: ChoiceCache | None = None,
) -> Chosen:
    """The engine for `source`, ready to run.

    Args:
        bundle: what is run.
        source: for its kind and length.
        ahead: its frames, the first of which are looked at where something is measured.
        wanted: restricts the choice.
        remark: takes the line that says what was chosen, and why; and a line for what does not work here.
        cache: of former choices; default: the user's.

    Raises:
        UsageError: no engine that may be chosen has the precision, or an option means nothing to them.
        PackageMissing, EnvironmentProblem: the standard engine cannot run.
    """
    cache, here, standard = cache or ChoiceCache(), Here.now(), standard_for(wanted.precision)
    candidates = tuple(
        each
        for each in candidates_for(bundle, here, wanted.precision)
        if not (wanted.deadline and engine_entry(each.engine).on_gpu)
    )
    situation = _situation(bundle, here, wanted)
    contestants = Contestants(lambda each: named_session(bundle, each.engine, wanted, precision=each.precision), remark)
    try:
        choice, frames = cache.recall(situation), wanted.frames_to_run(source)
        if choice is not None and frames is not None and frames < choice.pays_from:
            remark(f"engine: {standard}; {choice.name}, {choice.ratio:.2f}x, pays from {choice.pays_from} frames on")
            return wanted.run_in(standard.engine, contestants.session(standard))
        if choice is not None and _still_works(choice, (standard, *candidates), contestants):
            remark(f"{choice_line(choice)} (remembered from {choice.date[:10]})")
        else:
            terms = _terms(bundle, source, ahead, wanted, candidates, contestants.session(standard))
            if isinstance(terms, str):
                remark(f"engine: {standard}; {terms}")
                return wanted.run_in(standard.engine, contestants.session(standard))
            results, complete = contest(candidates, contestants, terms, standard=standard)
            winner = winner_of(results, contestants, terms, standard=standard)
            choice = _choice(winner, results, standard, bundle)
            # Where the time was too short to find one, or one had no room, the next run has another try.
            if (complete or winner is not None) and not contestants.disturbed:
                cache.remember(situation, choice)
            remark(choice_line(choice))
        final = Candidate(choice.engine, choice.precision)
        contestants.close_all_but(final)
        dense = choice.dense and not wanted.settings.dense
        settings = RunSettings.resolve(bundle.manifest, dense=True) if dense else wanted.settings
        return wanted.run_in(final.engine, contestants.session(final), settings)
    except BaseException:
        contestants.close_all_but(None)
        raise


def named_session(bundle: Bundle, engine: str, wanted: Wanted, *, precision: str | None = None) -> Session:
    """The session of an engine that is named, at `precision` or the one that is wanted."""
    at_once = wanted.at_once(engine)
    return Session(
        bundle,
        engine=engine,
        precision=precision or wanted.precision,
        threads=at_once.threads,
        callers=at_once.callers,
        options=wanted.options,
    )


def standard_for(precision: str | None) -> Candidate:
    """What runs in `precision` where nothing is measured: the first engine of the list that computes in it.

    Raises:
        UsageError: there is none.
    """
    if precision is None:
        return STANDARD
    for name in AUTOMATIC:
        if precision in engine_entry(name).precisions:
            return Candidate(name, precision)
    known = dict.fromkeys(each for name in AUTOMATIC for each in engine_entry(name).precisions)
    raise UsageError(f"--precision: '{precision}' given; --engine auto chooses among: {', '.join(known)}")


def candidates_for(bundle: Bundle, here: Here, precision: str | None) -> tuple[Candidate, ...]:
    """What may be faster than the standard on a machine like `here`, the most promising first.

    Installed engines; precisions that the CPU computes in, and that the bundle has and does not say lose too much.
    """
    found = []
    stated = stated_by(bundle)
    for name in AUTOMATIC:
        entry = engine_entry(name)
        if (entry.on_gpu and not here.gpu) or not all(map(packages.is_there, entry.packages)):
            continue
        for each in entry.precisions if precision is None else {precision} & set(entry.precisions):
            candidate = Candidate(name, each)
            in_hardware = entry.on_gpu or each == FP32 or computes_in(each, here.features)
            known = stated.losses.get(candidate)
            # Who names a precision has decided on what it loses.
            accurate = precision is not None or known is None or known.lost <= stated.max_drop
            if in_hardware and accurate and _carried(bundle, each):
                found.append(candidate)
    return tuple(
        sorted((each for each in found if each != standard_for(precision)), key=lambda each: _rank(each.precision))
    )


def computes_in(precision: str, features: Sequence[str]) -> bool:
    """A CPU with `features` has instructions for a precision below fp32."""
    return not {*PRECISIONS.get(precision, ())}.isdisjoint(features)


def slow_precision(precision: str | None, *, on_gpu: bool) -> str | None:
    """A line for whoever names a precision that this CPU can run, only not fast; else None.

    In bf16 such a CPU is refused by the engine, since it would imitate it.
    """
    features = this_machine().features
    # Without any feature the system, which is not Linux, tells nothing of its CPU.
    if precision != "int8" or on_gpu or not features or computes_in(precision, features):
        return None
    return (
        "--precision int8: this CPU has no instructions for products in 8 bits (VNNI, AMX or Arm's dot products); "
        "fp32 may be faster"
    )


@dataclass(frozen=True)
class Stated:
    """What a bundle says of precisions below fp32."""

    losses: dict[Candidate, PrecisionParity] = field(default_factory=dict)
    max_drop: float = MAX_DROP
    """Points that each of them may lose."""


def stated_by(bundle: Bundle) -> Stated:
    """What `bundle` says that its precisions lose and may lose; nothing where its report cannot be read."""
    try:
        report = bundle.parity()
    except BundleError:
        return Stated()
    if report is None:
        return Stated()
    return Stated({Candidate(entry.engine, entry.precision): entry for entry in report.precisions}, report.max_drop)


def choice_line(choice: EngineChoice) -> str:
    """The line that says what runs, and why."""
    if choice.name == choice.over:
        runner_up = f" (the next: {choice.runner_up})" if choice.runner_up else ""
        return f"engine: {choice.name}; nothing else here is clearly faster{runner_up}"
    return (
        f"engine: {choice.name}, {choice.ratio:.2f}x as fast as {choice.over} on the first frames; "
        f"{choice.agreement:.2%} of the answers are the same"
    )


def _rank(precision: str) -> int:
    # fp32 last: where a lower precision is there, time is better spent on it.
    return list(PRECISIONS).index(precision) if precision in PRECISIONS else len(PRECISIONS) + (precision == FP32)


def _carried(bundle: Bundle, precision: str) -> bool:
    """The bundle has what the engines need for `precision`: of int8 graphs of its own; others are made of fp32's."""
    return precision != "int8" or precision in bundle.manifest.precisions


def _situation(bundle: Bundle, here: Here, wanted: Wanted) -> Situation:
    return Situation(
        here=here,
        bundle=bundle_digest(bundle),
        threads=wanted.threads,
        precision=wanted.precision,
        dense=wanted.settings.dense,
        deadline=wanted.deadline,
        audited=wanted.audited,
        thresholds=wanted.thresholds,
    )


def _still_works(choice: EngineChoice, allowed: tuple[Candidate, ...], contestants: Contestants) -> bool:
    """A former choice is among what may be chosen now, and loads."""
    candidate = Candidate(choice.engine, choice.precision)
    if candidate not in allowed:
        return False
    try:
        contestants.session(candidate)
    except FAILURES as error:
        contestants.leave_out(candidate, error)
        return False
    return True


def _terms(
    bundle: Bundle,
    source: Source,
    ahead: FramesAhead,
    wanted: Wanted,
    candidates: tuple[Candidate, ...],
    standard: Session,
) -> Terms | str:
    """What is measured and for how long; or why nothing is."""
    spec = bundle.manifest.spec
    decided = wanted.thresholds is not None or wanted.settings.dense or wanted.deadline or wanted.audited
    may_be_dense = bool(spec.gates) and spec.has_dense and not decided
    if not candidates and not may_be_dense:
        return "nothing else here may be faster"
    if source.kind == "live":
        return "on a live source the fastest is not measured, only remembered"
    to_run = wanted.frames_to_run(source)
    if to_run is not None and to_run < FEWEST_FRAMES:
        return f"the fastest is measured on sources of {FEWEST_FRAMES} frames and more"
    frames = ahead.first(FRAMES_AHEAD)
    if not frames:
        return "none of the first frames can be read to measure which is the fastest"
    numbers = dict.fromkeys((0, len(frames) - 1))
    pixels = tuple(whole_input(frames[number].rgb, bundle.manifest) for number in numbers)
    expected = math.inf if to_run is None else to_run * _seconds_of_a_frame(standard, pixels[0], wanted)
    seconds = min(LONGEST_S, expected)
    if seconds < SHORTEST_S:
        return "the run is over before the fastest would be found"
    stated = stated_by(bundle)
    return Terms(
        pixels,
        wanted.settings,
        RunSettings.resolve(bundle.manifest, dense=True) if may_be_dense else None,
        seconds - FOR_TRUST_S,
        stated.max_drop if wanted.precision is None else None,
        stated.losses,
    )


def _seconds_of_a_frame(standard: Session, pixels: Pixels, wanted: Wanted) -> float:
    # The first run allocates.
    standard.run_one(pixels, wanted.settings)
    begun = perf_counter()
    standard.run_one(pixels, wanted.settings)
    return perf_counter() - begun


def _choice(winner: Timed | None, results: list[Timed], standard: Candidate, bundle: Bundle) -> EngineChoice:
    others = [entry for entry in results if entry != winner]
    chosen = winner or Timed(standard, dense=False, ratio=1.0, pairs=0, agreement=1.0)
    return EngineChoice(
        engine=chosen.candidate.engine,
        precision=chosen.candidate.precision,
        dense=chosen.dense,
        ratio=chosen.ratio,
        agreement=chosen.agreement,
        pays_from=chosen.pays_from,
        over=str(standard),
        runner_up=f"{others[0]}, {others[0].ratio:.2f}x" if others else "",
        bundle=bundle.path.name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
