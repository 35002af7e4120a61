"""Calibration from end to end: record, predict, run the few promising settings, verify on held-back images.

    search part   one recording pass -> predicted curve -> real runs along it -> real runs around the border
    check part    one dense pass -> real runs of the chosen setting and of more cautious (or bolder) ones

Nothing of the check part is seen before the search is over. What is taken keeps the budget on the check part alone and
on all images together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dovit_deploy import __version__
from dovit_deploy.bundle.calibration import Calibration, CurvePoint, MeasuredPoint, Part, PartEntry
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.calibrate.budgets import Budget, drop_with_interval
from dovit_deploy.calibrate.predicted import Surrogate
from dovit_deploy.calibrate.search import Judged, border, check_sequence, held, refined
from dovit_deploy.calibrate.trial import DensePart, Pictures, Runner, Trial, joined_parts, joined_trials
from dovit_deploy.errors import CheckError, DatasetError, UsageError
from dovit_deploy.measure.bench import median
from dovit_deploy.measure.intervals import Blocks, blocks_from_stems, images_needed
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.session import Session

# Dividing pictures into a search part and a held-back check part, whole blocks of neighbours at a time.
#
# Neighbouring images of a drive are almost copies of each other: divided one by one, the held-back ones would have been
# seen.

FEWEST_BLOCKS = 4
"""Two in each part, so that each has an interval."""


@dataclass(frozen=True)
class Halves:
    """Indices of the pictures of both parts, rising, and the block of every picture."""

    search: tuple[int, ...]
    check: tuple[int, ...]
    blocks: Blocks

    def blocks_of(self, indices: Sequence[int]) -> Blocks:
        """The blocks of these pictures, numbered from 0 again."""
        return Blocks(np.unique(self.blocks.number[list(indices)], return_inverse=True)[1].astype(np.int64))


def halves(stems: Sequence[str], *, seed: int) -> Halves:
    """Half of the blocks for the search, the other half held back, drawn by `seed`.

    Raises:
        DatasetError: fewer than four images.
    """
    blocks = blocks_from_stems(stems)
    if blocks.count < FEWEST_BLOCKS:
        raise DatasetError(f"{len(stems)} images given; at least {FEWEST_BLOCKS} are needed, since half are held back")
    drawn = np.random.default_rng(seed).permutation(blocks.count)
    searched = np.isin(blocks.number, drawn[: (blocks.count + 1) // 2])
    return Halves(tuple(np.flatnonzero(searched).tolist()), tuple(np.flatnonzero(~searched).tolist()), blocks)


SEED = 0
"""Of the division into search and check part."""
Progress = Callable[[str], None]
"""Told what is being done."""


@dataclass
class _Bench:
    """One part of the images with everything that was run on it."""

    part: Part
    dense: DensePart
    runner: Runner
    budget: Budget
    entries: dict[tuple[float, ...], MeasuredPoint] = field(default_factory=dict)
    trials: dict[tuple[float, ...], Trial] = field(default_factory=dict)

    def measure(self, points: Sequence[CurvePoint]) -> list[Judged]:
        """Really run `points`, all interleaved; what was run before is not run again."""
        missing = [point for point in points if point.thresholds not in self.trials]
        trials = self.runner.run(self.dense, [point.thresholds for point in missing]) if missing else []
        self.trials.update({trial.thresholds: trial for trial in trials})
        return [self.judge(point, self.trials[point.thresholds]) for point in points]

    def judge(self, point: CurvePoint, trial: Trial) -> Judged:
        """Write down how `trial` of `point` went."""
        entry = self._entry(point, trial, self.budget.judged(self.dense, trial))
        self.entries[point.thresholds] = entry
        good = self.budget.promising(self.dense, trial) if self.part == "search" else entry.met
        # A setting that saves nothing is no answer to how much accuracy may be given up.
        useful = self.budget.limits_cost or entry.flops_saved > 0
        harm = entry.differing if entry.drop is None else entry.drop
        return Judged(point, good and useful, entry.met and useful, entry.flops_saved, harm)

    def _entry(self, point: CurvePoint, trial: Trial, judged: float) -> MeasuredPoint:
        drop = drop_with_interval(self.dense, trial) if trial.counts else None
        return MeasuredPoint(
            part=self.part,
            thresholds=point.thresholds,
            images=len(trial.differing),
            predicted=point.predicted,
            flops_saved=trial.flops_saved,
            gmacs=float(np.mean(trial.gmacs)),
            kept=tuple(float(value) for value in np.mean(trial.kept, axis=0)),
            differing=trial.mean_differing,
            miou=ClassCounts.stacked(trial.counts).miou if trial.counts else None,
            drop=None if drop is None else drop.drop,
            drop_interval=None if drop is None else drop.interval,
            model_ms=median(trial.model_ms),
            judged=judged,
            met=self.budget.met(judged),
        )

    @property
    def measured(self) -> tuple[MeasuredPoint, ...]:
        """Everything that was run, once."""
        return tuple(self.entries.values())


def calibrate(
    session: Session,
    pictures: Pictures,
    budget: Budget,
    *,
    advance: Callable[[], None],
    progress: Progress,
    seed: int = SEED,
) -> Calibration:
    """Thresholds of all gates that keep to `budget` on images that the search never saw.

    Args:
        session: of the bundle, in the engine it is to be run in.
        pictures: search and check part together.
        budget: what is asked for.
        advance: told after every picture.
        progress: told what is being done.
        seed: of the division into the two parts.

    Raises:
        UsageError: the model has no gates, or the budget needs labels that the pictures do not have.
        DatasetError: too few images to hold some back.
        CheckError: the budget cannot be met.
    """
    manifest = session.bundle.manifest
    _check_request(manifest, pictures, budget)
    parts = halves(pictures.stems, seed=seed)
    _check_count(parts, budget)
    runner = Runner(session, pictures, repeat=budget.repeat, advance=advance)
    progress(f"recording {len(parts.search)} images")
    dense, recording = runner.record(parts.search, parts.blocks_of(parts.search))
    progress("predicting")
    surrogate = Surrogate(recording, floor=manifest.defaults.floor)
    curve = surrogate.curve()
    search = _Bench("search", dense, runner, budget)
    chosen, certain = _search(search, surrogate, curve, progress)
    progress(f"checking on {len(parts.check)} held-back images")
    unseen = runner.dense(parts.check, parts.blocks_of(parts.check))
    check = _Bench("check", unseen, runner, budget)
    whole = _Bench("all", joined_parts(dense, unseen, parts.blocks), runner, budget)
    sequence = check_sequence(chosen.point, certain, curve, limits_cost=budget.limits_cost)
    final = _checked(sequence, search, check, whole)
    table = tuple((float(value),) * manifest.spec.classes for value in final.point.thresholds)
    return Calibration(
        tool=f"dovit-deploy {__version__}",
        dataset=pictures.name,
        split=pictures.split,
        seed=seed,
        engine=session.backend.name,
        precision=session.backend.precision,
        budget=budget.entry,
        thresholds=table,
        floor=manifest.defaults.floor,
        parts=tuple(_part_entry(bench, pictures) for bench in (search, check, whole)),
        curve=curve,
        measured=(*search.measured, *check.measured, *whole.measured),
        chosen=check.entries[final.point.thresholds],
        chosen_on_all=whole.entries[final.point.thresholds],
        passes=runner.passes,
    )


def refuse_without_gates(manifest: Manifest) -> None:
    """Raise UsageError for a model whose numbers of tokens no threshold decides."""
    if not manifest.spec.gates:
        raise UsageError(f"{manifest.name} is a model without gates; it has no thresholds to calibrate")


def _check_request(manifest: Manifest, pictures: Pictures, budget: Budget) -> None:
    refuse_without_gates(manifest)
    if budget.needs_labels and not pictures.labelled:
        raise DatasetError(
            f"{pictures.name} has no labels, and a drop of mIoU cannot be measured without; "
            "give a labelled data set, or --max-disagree E --confidence C, which needs none"
        )


def _check_count(parts: Halves, budget: Budget) -> None:
    entry = budget.entry
    if entry.confidence is None:
        return
    needed = images_needed(entry.limit, confidence=entry.confidence)
    if len(parts.check) < needed:
        raise CheckError(
            f"{entry.text}: {len(parts.check)} held-back images cannot show that, even if no pixel differs; "
            f"it takes {needed} of them: give at least {2 * needed} images, or allow more"
        )


def _search(
    search: _Bench, surrogate: Surrogate, curve: Sequence[CurvePoint], progress: Progress
) -> tuple[Judged, CurvePoint | None]:
    """The setting that promises most, and the boldest that is certain, from the images of the search alone."""
    cost = search.budget.limits_cost
    progress("running settings along the curve")
    start = border(curve, search.measure, limits_cost=cost)
    if start is None:
        raise CheckError(_unmet(search.budget, search.measured, "images of the search"))
    certain = None
    if not cost:
        up_to = [point for point in curve if point.predicted.flops_saved <= start.point.predicted.flops_saved]
        certain = border(up_to, search.measure, limits_cost=False, certain=True)
    progress("running neighbours")
    best = refined(start, surrogate.neighbours(start.point.thresholds), search.measure, limits_cost=cost)
    return best, None if certain is None else certain.point


def _checked(sequence: Sequence[CurvePoint], search: _Bench, check: _Bench, whole: _Bench) -> Judged:
    """Which setting of `sequence` is taken: it must keep the budget held back, and on all images together."""
    search.measure(sequence)
    held_back = check.measure(sequence)
    both = [
        whole.judge(point, joined_trials(search.trials[point.thresholds], search.dense, result, check.dense))
        for point, result in ((point, check.trials[point.thresholds]) for point in sequence)
    ]
    met = [replace(one, met=one.met and other.met) for one, other in zip(held_back, both, strict=True)]
    final = held(met, limits_cost=check.budget.limits_cost)
    if final is None:
        alone = any(result.met for result in held_back)
        raise CheckError(
            _unmet(check.budget, whole.measured, "all images together")
            if alone
            else _unmet(check.budget, check.measured, "held-back images")
        )
    return final


def _unmet(budget: Budget, measured: Sequence[MeasuredPoint], where: str) -> str:
    sign = max if budget.entry.kind == "flops" else min
    best = sign(measured, key=lambda entry: entry.judged)
    values = ", ".join(f"{value:g}" for value in best.thresholds)
    return (
        f"{budget.entry.text}: not reached on the {where}; nearest: {best.judged:.4g} at thresholds {values}, "
        f"where {best.flops_saved:.1%} of the MACs are saved. Allow more, or give more images"
    )


def _part_entry(bench: _Bench, pictures: Pictures) -> PartEntry:
    dense = bench.dense
    return PartEntry(
        part=bench.part,
        images=tuple(pictures.stems[index] for index in dense.indices),
        blocks=dense.blocks.count,
        dense_miou=ClassCounts.stacked(dense.counts).miou if dense.counts else None,
        dense_gmacs=bench.measured[0].gmacs / (1.0 - bench.measured[0].flops_saved),
    )
