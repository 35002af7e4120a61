"""How is the latency model of this machine made? From runs whose tokens are forced to stop, stage by stage.

    warm up every size -> rounds over all patterns, in changing order -> medians -> a curve a stage -> held-out patterns

What a stage takes depends on how many tokens enter it and not on which, so noise for pixels and a drawn order of tokens
do. Rounds are run until the time is over or there are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from time import perf_counter, process_time

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.interface import LOGITS
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.runtime.latency import ClockName, LatencyModel, StageTime, fitted_stage
from dovit_deploy.runtime.results import Pixels
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

LEVELS, OTHERS = 8, 4
"""Numbers of tokens that patterns are made of, evenly spread from the fewest to all; and others to check with. Few of
both: an engine that pads compiles every size."""
RANDOM, HELD_OUT = 7, 10
"""Patterns that fall from stage to stage: to fit with, and to check with."""
FEWEST_ROUNDS, MOST_ROUNDS = 2, 11
SECONDS, SHORT_SECONDS = 16.0, 5.0
"""Of a whole measurement, and of one that somebody waits for; compiling comes on top."""
WHOLE = 5
"""Of the patterns to fit with, every so many is also run as a whole."""
SLOW = 95.0
"""Percentile of single runs."""
SEED = 0

Pattern = tuple[int, ...]
"""Tokens that enter each stage, extra tokens included; never rising."""
CLOCKS: dict[ClockName, Callable[[], float]] = {"cpu": process_time, "wall": perf_counter}


@dataclass
class _Timed:
    """One pattern and what its runs took, in milliseconds."""

    pattern: Pattern
    settings: RunSettings
    stages: list[list[float]] = field(default_factory=list)
    """A run stage by stage: (runs, stages)."""
    whole: list[float] = field(default_factory=list)

    @property
    def stage_medians(self) -> npt.NDArray[np.float64]:
        """(stages,)."""
        return np.asarray(np.median(self.stages, axis=0), dtype=np.float64)


def clock_for(threads: int | None) -> ClockName:
    """Of one thread processor time, which other processes do not change; of several the time one waits."""
    return "cpu" if threads == 1 else "wall"


def fit_latency(
    session: Session,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] | None = None,
    advance: Callable[[], None] | None = None,
) -> LatencyModel:
    """Measure what the stages of `session`, of a bundle with gates, take here.

    Args:
        session: its sizes are compiled by this.
        seconds: no round is begun so long after all is compiled, but for the first two.
        clock: seconds; default: that of `clock_for`.
        advance: called after every round, and before them after every run that may compile.
    """
    begun, name = perf_counter(), clock_for(session.threads)
    measuring = _Measuring(session, clock or CLOCKS[name])
    for_fit, for_check = (list(map(measuring.timed, some)) for some in patterns(session.bundle.manifest.spec))
    for entry in (*for_fit, *for_check):
        measuring.warm_up(entry)
        if advance is not None:
            advance()
    turns = [partial(measuring.run_stages, entry) for entry in for_fit]
    turns += [partial(measuring.run_whole, entry) for entry in (*for_fit[::WHOLE], *for_check)]
    rounds, random = 0, np.random.default_rng(SEED)
    compiled = perf_counter()
    while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and perf_counter() - compiled < seconds):
        # In another order every time, so that what else the machine does falls on all patterns alike.
        for number in random.permutation(len(turns)):
            turns[number]()
        rounds += 1
        if advance is not None:
            advance()
    stages = measuring.stages(for_fit)
    model = LatencyModel(
        bundle=session.bundle.path.name,
        engine=session.backend.name,
        precision=session.backend.precision,
        threads=session.threads,
        clock=name,
        outside_ms=_outside(for_fit[::WHOLE], stages),
        stages=stages,
        error=0.0,
        slow=1.0,
        held_out=len(for_check),
        runs=rounds * len(turns),
        seconds=perf_counter() - begun,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    medians = [float(np.median(_ratios(model, entry))) for entry in for_check]
    single = np.concatenate([_ratios(model, entry) for entry in for_check])
    error, slow = np.median(np.abs(np.subtract(medians, 1))), np.percentile(single, SLOW)
    return model.model_copy(update={"error": float(error), "slow": float(slow)})


def run_every_size(session: Session, most: int, *, advance: Callable[[], None] | None = None) -> None:
    """Run the later stages in every size that the engine pads up to `most` tokens to: none is compiled for a frame.

    `advance` is called after each.
    """
    measuring, spec = _Measuring(session, perf_counter), session.bundle.manifest.spec
    sizes = {session.size_run(len(spec.gates), count) for count in range(spec.extra_tokens, most)}
    # `most` comes by itself: all tokens may be a case of their own.
    counts = {min(size, most - 1) for size in sizes} if measuring.padded[-1] else set()
    for count in sorted(counts | {most}):
        measuring.warm_up(measuring.timed((spec.tokens, *[count] * len(spec.gates))))
        if advance is not None:
            advance()


def patterns(spec: ModelSpec) -> tuple[list[Pattern], list[Pattern]]:
    """Patterns to fit with and patterns to check with, the same every time."""
    rng, gates = np.random.default_rng(SEED), len(spec.gates)
    levels = np.unique(np.linspace(spec.extra_tokens, spec.tokens, LEVELS).round().astype(int))

    def falling(counts: npt.NDArray[np.int64]) -> Pattern:
        return (spec.tokens, *(int(count) for count in np.sort(counts)[::-1]))

    # All stages alike, so that the last ones see many tokens, too; and falling ones, as real images are.
    fit = [(spec.tokens, *([int(level)] * gates)) for level in levels]
    fit += [falling(rng.choice(levels, gates)) for _ in range(RANDOM)]
    others = rng.integers(spec.extra_tokens, spec.tokens + 1, OTHERS)
    return fit, [falling(rng.choice(others, gates)) for _ in range(HELD_OUT)]


class _Measuring:
    """Runs a session with tokens that are forced to stop, and times it."""

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self._session, self._clock = session, clock
        spec, rng = session.bundle.manifest.spec, np.random.default_rng(SEED)
        self._spec = spec
        self._order = spec.extra_tokens + rng.permutation(spec.patches)
        self.padded = [self._sizes(number) for number in range(len(spec.gates) + 1)]
        self._warm: set[tuple[int, int, bool]] = set()
        """Stage, size, and whether all tokens ran, for which an engine may have a form of its own."""
        self._pixels: Pixels = rng.standard_normal((1, 3, *spec.size)).astype(np.float32)

    def timed(self, pattern: Pattern) -> _Timed:
        return _Timed(pattern, RunSettings.stop_nothing(self._spec, replay=[*map(self._index, pattern[1:])]))

    def warm_up(self, entry: _Timed) -> None:
        """Run it once if one of its sizes was not run before: the engine may compile it now, and allocates."""
        # An engine that runs every count as it is has nothing to prepare for each of them.
        sizes = {
            (number, self._session.size_run(number, count) if self.padded[number] else 0, count == self._spec.tokens)
            for number, count in enumerate(entry.pattern)
        }
        if not sizes <= self._warm:
            self._session.run_one(self._pixels, entry.settings)
            self._warm |= sizes

    def run_stages(self, entry: _Timed) -> None:
        """Run it once, and note what each stage took."""
        times = [self._clock()]
        for outputs, index in self._session.stages(self._pixels, entry.settings):
            if index is None:
                self._session.backend.download(outputs[LOGITS])
            times.append(self._clock())
        # A clock may be too coarse to see a stage.
        entry.stages.append([max(1e3 * taken, 1e-6) for taken in np.diff(times)])

    def run_whole(self, entry: _Timed) -> None:
        """Run it once as it is always run, and note what that took."""
        begun = self._clock()
        self._session.run_one(self._pixels, entry.settings)
        entry.whole.append(max(1e3 * (self._clock() - begun), 1e-6))

    def stages(self, timed: Sequence[_Timed]) -> tuple[StageTime, ...]:
        """The curves of all stages."""
        taken = np.stack([entry.stage_medians for entry in timed])
        return tuple(self._stage(number, timed, taken[:, number]) for number in range(taken.shape[1]))

    def _stage(self, number: int, timed: Sequence[_Timed], taken: npt.NDArray[np.float64]) -> StageTime:
        counts = [self._session.size_run(number, entry.pattern[number]) for entry in timed]
        return fitted_stage(counts, taken.tolist(), padded=self.padded[number])

    def _sizes(self, number: int) -> tuple[int, ...]:
        """Those in which a stage is run, rising; empty where every count is."""
        every = range(self._spec.extra_tokens, self._spec.tokens + 1)
        sizes = sorted({self._session.size_run(number, count) for count in every})
        return () if len(sizes) == len(every) else tuple(sizes)

    def _index(self, count: int) -> npt.NDArray[np.int64]:
        """The first tokens of one order, so that none resumes: (count,), extra tokens first, then in raster order."""
        extra = self._spec.extra_tokens
        chosen = np.sort(self._order[: count - extra])
        return np.concatenate([np.arange(extra), chosen]).astype(np.int64)


def _outside(timed: Sequence[_Timed], stages: Sequence[StageTime]) -> float:
    """What a whole run takes beyond its stages, in milliseconds."""
    inside = [sum(float(stage.at(n)) for stage, n in zip(stages, entry.pattern, strict=True)) for entry in timed]
    beyond = [np.median(entry.whole) - taken for entry, taken in zip(timed, inside, strict=True)]
    return max(0.0, float(np.median(beyond)))


def _ratios(model: LatencyModel, entry: _Timed) -> npt.NDArray[np.float64]:
    """What whole runs of a pattern took, over what the model says of it."""
    return np.asarray(entry.whole, dtype=np.float64) / max(model.milliseconds(entry.pattern), 1e-6)
