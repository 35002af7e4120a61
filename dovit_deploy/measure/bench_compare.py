"""What changed since an earlier benchmark, beyond noise? `--compare OLD.json`.

Frames are paired by their pixels. The ratio of medians gets a bootstrap's interval: frames are drawn, the same of both
reports, and rounds, of each report its own, so that a machine that is slow for a while widens the interval. What
differs between the two runs as a whole, as a machine that was busy throughout one of them, is in no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dovit_deploy.documents import NotData, data_from_json, fault_of, read_text
from dovit_deploy.errors import InputError
from dovit_deploy.measure.bench_records import BenchComparison, BenchReport, BenchResult, Change, FrameResult
from dovit_deploy.measure.intervals import FEWEST_BLOCKS, LEVEL, RESAMPLES, SEED
from dovit_deploy.printing import plural

MOST_MS = 1e9
"""That a model step takes in an earlier report: eleven days."""
RunName = Literal["dense", "dynamic"]


def earlier_report(path: Path) -> BenchReport:
    """The report in a file of `bench --json`.

    Raises:
        InputError: it cannot be read, is no such report, or one of a version that kept no time of each frame.
    """
    try:
        report = BenchReport.model_validate(data_from_json(read_text(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--compare {path}: cannot be read: {error}") from error
    except NotData as error:
        raise InputError(f"--compare {path}: no report of dovit bench --json: {error}") from error
    except ValidationError as error:
        raise InputError(f"--compare {path}: no report of dovit bench --json: {fault_of(error)}") from error
    frames = [frame for result in report.results for frame in result.per_frame]
    if not all(frame.sha256 and frame.dynamic_ms for frame in frames):
        raise InputError(f"--compare {path}: an older version wrote it, without the times of each frame; measure again")
    times = [time for frame in frames for time in (*frame.dynamic_ms, *(frame.dense_ms or ()))]
    # Also false of NaN.
    if wrong := [time for time in times if not 0 < time < MOST_MS]:
        raise InputError(f"--compare {path}: no report of dovit bench --json: a frame that takes {wrong[0]:g} ms")
    return report


def refuse_incomparable(
    before: BenchReport, path: Path, *, pairs: Sequence[tuple[str, str]], frames: Iterable[str]
) -> None:
    """Refuse an earlier report with which nothing will be compared.

    Args:
        before: the report.
        path: where it lies.
        pairs: the engines and precisions that are about to be measured.
        frames: the digests of the frames, see `FrameResult`.

    Raises:
        InputError: it has none of them, or none of these frames.
    """
    there = [(result.engine, result.precision) for result in before.results]
    shared = [result for result in before.results if (result.engine, result.precision) in pairs]
    if not shared:
        raise InputError(f"--compare {path}: it has {_named(there)}, and now {_named(pairs)} is measured")
    if not {frame.sha256 for result in shared for frame in result.per_frame} & set(frames):
        raise InputError(
            f"--compare {path}: none of its frames is one of those that are measured now; "
            "give the same --frames and a bundle of the same size"
        )


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(" ".join(pair) for pair in pairs) or "nothing"


def compared(before: BenchReport, now: BenchReport, path: Path) -> BenchComparison:
    """What changed from `before`, which lies at `path`, to `now`."""
    earlier = {(result.engine, result.precision): result for result in before.results}
    changes = [
        change
        for result in now.results
        if (old := earlier.get((result.engine, result.precision))) is not None
        for change in _changes(old, result)
    ]
    return BenchComparison(file=str(path), differences=_differences(before, now), changes=tuple(changes))


def _changes(before: BenchResult, now: BenchResult) -> list[Change]:
    old = {frame.sha256: frame for frame in before.per_frame}
    # A frame may occur twice; it is paired once.
    pairs = {frame.sha256: (old[frame.sha256], frame) for frame in now.per_frame if frame.sha256 in old}
    runs: tuple[RunName, ...] = ("dense", "dynamic")
    found = [_change(now, run, [_times(pair, run) for pair in pairs.values()]) for run in runs]
    return [change for change in found if change is not None]


Times = tuple[float, ...]


def _times(pair: tuple[FrameResult, FrameResult], run: RunName) -> tuple[Times, Times]:
    """Milliseconds in each round, before and now; empty where it did not run so."""
    before, now = ((frame.dense_ms or ()) if run == "dense" else frame.dynamic_ms for frame in pair)
    return before, now


def _change(result: BenchResult, run: RunName, times: Sequence[tuple[Times, Times]]) -> Change | None:
    both = [(before, now) for before, now in times if before and now]
    if not both:
        return None
    before, now = (_table(column) for column in zip(*both, strict=True))
    ends = float(np.median(before)), float(np.median(now))
    return Change(
        engine=result.engine,
        precision=result.precision,
        run=run,
        frames=len(both),
        before_ms=ends[0],
        now_ms=ends[1],
        ratio=ends[0] / ends[1],
        interval=_interval(before, now),
    )


def _table(times: Sequence[Times]) -> NDArray[np.float64]:
    """(frames, rounds) of as many rounds as every frame has."""
    rounds = min(map(len, times))
    return np.array([row[:rounds] for row in times], dtype=np.float64)


def _interval(before: NDArray[np.float64], now: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of the ratio of medians; None for too few frames."""
    frames = len(before)
    if frames < FEWEST_BLOCKS:
        return None
    rng = np.random.default_rng(SEED)

    def median_of_draw(table: NDArray[np.float64], drawn: NDArray[np.int64]) -> float:
        rounds = rng.integers(table.shape[1], size=table.shape[1])
        return float(np.median(table[np.ix_(drawn, rounds)]))

    ratios = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(frames, size=frames)
        ratios.append(median_of_draw(before, drawn) / median_of_draw(now, drawn))
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _differences(before: BenchReport, now: BenchReport) -> tuple[str, ...]:
    """What else is not as it was, in a line each."""
    named: list[tuple[str, Mapping[str, object], Mapping[str, object]]] = [
        ("machine", before.machine, now.machine),
        ("versions", before.versions, now.versions),
        *(
            (name, {name: getattr(before, name)}, {name: getattr(now, name)})
            for name in ("bundle", "threads", "repeat", "frames")
        ),
    ]
    lines = []
    for name, old, new in named:
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                what = key if key == name else f"{name}: {key}"
                lines.append(f"{what} was {old.get(key, 'not there')}, is {new.get(key, 'not there')}")
    return tuple(lines)


def comparison_lines(comparison: BenchComparison) -> list[str]:
    """What changed, in a line for each way of running, and what else is not as it was."""
    lines = [
        f"{change.engine} {change.precision} {change.run} against {Path(comparison.file).name}: {verdict(change)}; "
        f"p50 {change.before_ms:.2f} -> {change.now_ms:.2f} ms on {plural(change.frames, 'frame')}"
        for change in comparison.changes
    ]
    return lines + [f"not as it was: {line}" for line in comparison.differences]


def verdict(change: Change) -> str:
    """ "faster by 1.10x (1.05x to 1.15x)", "no change beyond noise (...)", or that frames are too few to say."""
    if change.interval is None:
        return f"{change.ratio:.2f}x; too few frames for an interval, at least {FEWEST_BLOCKS} are needed"
    low, high = change.interval
    if low <= 1 <= high:
        return f"no change beyond noise ({low:.2f}x to {high:.2f}x)"
    if low > 1:
        return f"faster by {change.ratio:.2f}x ({low:.2f}x to {high:.2f}x)"
    return f"slower by {1 / change.ratio:.2f}x ({1 / high:.2f}x to {1 / low:.2f}x)"
