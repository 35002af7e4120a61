"""Calibration from end to end: record, predict, run the few promising settings, verify on held-out images.

    search part   one recording pass -> predicted curve -> real runs along it -> real runs around the border
    check part    one dense pass -> real runs of the chosen setting and of more cautious (or bolder) ones

Nothing of the check part is seen before the search is over. The setting that is chosen keeps the budget on the check
part alone and on all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dovit_deploy import __version__
from dovit_deploy.bundle.calibration import Calibration, CurvePoint, MeasuredPoint, PartEntry, PartName
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.calibrate.budgets import Budget, drop_with_interval
from dovit_deploy.calibrate.images import CalibrationImages, Halves, halves
from dovit_deploy.calibrate.predicted import Surrogate
from dovit_deploy.calibrate.search import Judged, accepted, border, check_sequence, refined
from dovit_deploy.calibrate.trial import DensePart, Runner, Trial, joined_parts, joined_trials
from dovit_deploy.errors import CheckError, DatasetError, UsageError
from dovit_deploy.measure.bench import median
from dovit_deploy.measure.intervals import images_needed
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.printing import plural
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.session import Session

SEED = 0
"""Of the division into search and check part."""


def calibrate(
    session: Session,
    images: CalibrationImages,
    budget: Budget,
    *,
    progress: StepProgress,
    seed: int = SEED,
) -> Calibration:
    """Thresholds of all gates that keep to `budget` on images that the search never saw.

    Args:
        session: of the bundle, in the engine it is to be run in.
        images: search and check part together.
        budget: what the thresholds must keep to.
        progress: shown to the user.
        seed: of the division into the two parts.

    Raises:
        UsageError: the model has no gates, or the budget needs labels that the images do not have.
        DatasetError: too few images to hold some out.
        CheckError: the budget cannot be met.
    """
    manifest = session.bundle.manifest
    _check_request(manifest, images, budget)
    parts = halves(images.blocks, seed=seed)
    # Before the search, which may take an hour, not after it.
    _check_count(parts, budget)
    runner = Runner(session, images, repeat=budget.repeat, progress=progress)
    progress.begin(f"recording {plural(len(parts.search), 'image')}", len(parts.search))
    dense, recording = runner.record(parts.search, images.blocks.of(parts.search))
    progress.begin("predicting")
    surrogate = Surrogate(recording, floor=manifest.defaults.floor)
    curve = surrogate.curve()
    search = _PartResults("search", dense, runner, budget)
    chosen, certain = _search(search, surrogate, curve, progress)
    progress.begin(f"checking on {len(parts.check)} held-out images")
    unseen = runner.dense(parts.check, images.blocks.of(parts.check))
    check = _PartResults("check", unseen, runner, budget)
    whole = _PartResults("all", joined_parts(dense, unseen, images.blocks), runner, budget)
    sequence = check_sequence(chosen.point, certain, curve, limits_cost=budget.limits_cost)
    final = _checked(sequence, search, check, whole)
    # The manifest holds a threshold per gate and class; calibration chooses one per gate.
    table = tuple((float(value),) * manifest.spec.classes for value in final.point.thresholds)
    return Calibration(
        tool=f"dovit-deploy {__version__}",
        dataset=images.name,
        split=images.split,
        seed=seed,
        engine=session.backend.name,
        precision=session.backend.precision,
        budget=budget.entry,
        thresholds=table,
        floor=manifest.defaults.floor,
        parts=tuple(results.part_entry(images) for results in (search, check, whole)),
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


@dataclass
class _PartResults:
    """One part of the images with everything that was run on it, by thresholds."""

    part: PartName
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
        """Judge `trial` of `point` by the budget, and note both for the report."""
        entry = self._entry(point, trial, self.budget.judged(self.dense, trial))
        self.entries[point.thresholds] = entry
        good = self.budget.promising(self.dense, trial) if self.part == "search" else entry.met
        # An accuracy budget asks what can be saved for it; a setting that saves nothing is no answer.
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

    def part_entry(self, images: CalibrationImages) -> PartEntry:
        """The part as it stands in `calibration.json`."""
        first = self.measured[0]
        return PartEntry(
            part=self.part,
            images=tuple(images.stems[index] for index in self.dense.indices),
            blocks=self.dense.blocks.count,
            dense_miou=ClassCounts.stacked(self.dense.counts).miou if self.dense.counts else None,
            # Dense MACs are the same whatever was run, so any entry gives them.
            dense_gmacs=first.gmacs / (1.0 - first.flops_saved),
        )


def _check_request(manifest: Manifest, images: CalibrationImages, budget: Budget) -> None:
    refuse_without_gates(manifest)
    if budget.needs_labels and not images.labelled:
        raise DatasetError(
            f"{images.name} has no labels, and a drop of mIoU cannot be measured without; "
            "give a labelled data set, or --max-disagree E --confidence C, which needs none"
        )


def _check_count(parts: Halves, budget: Budget) -> None:
    entry = budget.entry
    if entry.confidence is None:
        return
    needed = images_needed(entry.limit, confidence=entry.confidence)
    if len(parts.check) < needed:
        raise CheckError(
            f"{entry.text}: {len(parts.check)} held-out images cannot show that, even if no pixel differs; "
            f"it takes {needed} of them: give at least {2 * needed} images, or allow more"
        )


def _search(
    search: _PartResults, surrogate: Surrogate, curve: Sequence[CurvePoint], progress: StepProgress
) -> tuple[Judged, CurvePoint | None]:
    """The setting that promises most, and the boldest that is certain, from the images of the search alone."""
    cost = search.budget.limits_cost
    progress.begin("running settings along the curve")
    start = border(curve, search.measure, limits_cost=cost)
    if start is None:
        raise CheckError(_unmet(search.budget, search.measured, "images of the search"))
    # A cost budget has no interval, so that what meets it is certain.
    certain = None
    if not cost:
        up_to = [point for point in curve if point.predicted.flops_saved <= start.point.predicted.flops_saved]
        certain = border(up_to, search.measure, limits_cost=False, certain=True)
    progress.begin("running neighbours")
    best = refined(start, surrogate.neighbours(start.point.thresholds), search.measure, limits_cost=cost)
    return best, None if certain is None else certain.point


def _checked(sequence: Sequence[CurvePoint], search: _PartResults, check: _PartResults, whole: _PartResults) -> Judged:
    """The setting of `sequence` that keeps the budget on the held-out images alone and on all images together."""
    search.measure(sequence)
    held_out = check.measure(sequence)
    both = [
        whole.judge(point, joined_trials(search.trials[point.thresholds], search.dense, result, check.dense))
        for point, result in ((point, check.trials[point.thresholds]) for point in sequence)
    ]
    met = [replace(one, met=one.met and other.met) for one, other in zip(held_out, both, strict=True)]
    final = accepted(met, limits_cost=check.budget.limits_cost)
    if final is None:
        alone = any(result.met for result in held_out)
        raise CheckError(
            _unmet(check.budget, whole.measured, "all images together")
            if alone
            else _unmet(check.budget, check.measured, "held-out images")
        )
    return final


def _unmet(budget: Budget, measured: Sequence[MeasuredPoint], where: str) -> str:
    # Of FLOPs saved the most comes nearest to the limit, of everything else the least.
    nearest = max if budget.entry.kind == "flops" else min
    best = nearest(measured, key=lambda entry: entry.judged)
    values = ", ".join(f"{value:g}" for value in best.thresholds)
    return (
        f"{budget.entry.text}: not reached on the {where}; nearest: {best.judged:.4g} at thresholds {values}, "
        f"where {best.flops_saved:z.1%} of the MACs are saved. Allow more, or give more images"
    )
