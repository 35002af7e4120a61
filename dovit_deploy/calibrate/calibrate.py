"""Calibration from end to end: record, predict, run the few promising settings, verify on held-out images.

    search part   one recording pass -> predicted curve -> real runs along it -> real runs around the border
    check part    one dense pass -> real runs of the chosen setting and of more cautious (or bolder) ones

Nothing of the check part is seen before the search is over. The setting that is chosen keeps the budget on the check
part alone and on all images together; what is promised of other images (`promise.py`) is tested on the check part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dovit_deploy import __version__
from dovit_deploy.bundle.calibration import (
    Calibration,
    CurvePoint,
    HeldOutClass,
    HeldOutImage,
    MeasuredPoint,
    PartEntry,
    PartName,
    SequenceTest,
)
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.calibrate.budgets import Budget, DisagreeBudget, drop_with_interval
from dovit_deploy.calibrate.images import CalibrationImages, halves
from dovit_deploy.calibrate.predicted import Surrogate
from dovit_deploy.calibrate.promise import Promise
from dovit_deploy.calibrate.search import Judged, accepted, border, check_sequence, refined
from dovit_deploy.calibrate.trial import DensePart, Runner, Trial, joined_parts, joined_trials
from dovit_deploy.calibrate.units import Units
from dovit_deploy.errors import CheckError, DatasetError, UsageError
from dovit_deploy.measure.bench import median
from dovit_deploy.measure.intervals import blocks_of
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
    units: Units | None = None,
    seed: int = SEED,
) -> Calibration:
    """Thresholds of all gates that keep to `budget` on images that the search never saw.

    Args:
        session: of the bundle, in the engine it is to be run in.
        images: search and check part together.
        budget: what the thresholds must keep to.
        progress: shown to the user.
        units: which images are independent of which, for a promise; None: each of all others, as far as is known.
        seed: of the division into the two parts.

    Raises:
        UsageError: the model has no gates; or nobody says that the images are independent, and they are not.
        DatasetError: too few images to hold some out, or the budget needs labels that the images do not have.
        CheckError: the budget cannot be met, or there are too few units to promise anything.
    """
    manifest = session.bundle.manifest
    _check_request(manifest, images, budget)
    units = units or Units("image", "nobody", blocks_of(len(images.stems), None))
    promise = Promise(budget, units) if isinstance(budget, DisagreeBudget) else None
    # What is too little to promise anything is known before the search, which may take an hour.
    parts = halves(images.blocks, seed=seed) if promise is None else promise.parts(seed=seed)
    runner = Runner(session, images, repeat=budget.repeat, progress=progress, units=units.of_image)
    progress.begin(f"recording {plural(len(parts.search), 'image')}", len(parts.search))
    dense, recording = runner.record(parts.search, images.blocks.of(parts.search))
    progress.begin("predicting")
    surrogate = Surrogate(recording, floor=manifest.defaults.floor)
    curve = surrogate.curve()
    search = _PartResults("search", dense, runner, budget)
    chosen, certain = _search(search, surrogate, curve, progress)
    progress.begin(f"checking on {len(parts.check)} held-out images")
    unseen = runner.dense(parts.check, images.blocks.of(parts.check))
    check = _PartResults("check", unseen, runner, budget, searched=search)
    joined = joined_parts(dense, unseen, images.blocks, units.of_image)
    whole = _PartResults("all", joined, runner, budget, searched=search)
    sequence = check_sequence(chosen.point, certain, curve, limits_cost=budget.limits_cost)
    final, test = _checked(sequence, search, check, whole, promise)
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
        test=test,
        classes=check.classes(final.point.thresholds, [entry.name for entry in manifest.classes]),
        held_out=check.images(final.point.thresholds, images),
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
    searched: _PartResults | None = None
    """The same settings on the images of the search; None: these are they."""
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
        searched = None if self.searched is None else self.searched.trials[point.thresholds]
        entry = self._entry(point, trial, self.budget.judged(self.dense, trial, searched))
        self.entries[point.thresholds] = entry
        good = self.budget.promising(self.dense, trial) if self.part == "search" else entry.met
        # An accuracy budget asks what can be saved for it; a setting that saves nothing is no answer.
        useful = self.budget.limits_cost or entry.flops_saved > 0
        harm = entry.differing if entry.drop is None else entry.drop
        return Judged(point, good and useful, entry.met and useful, entry.flops_saved, harm)

    def _entry(self, point: CurvePoint, trial: Trial, judged: float) -> MeasuredPoint:
        # Images of which no pixel is labelled are as good as any others, where no label is needed.
        labelled = self.budget.needs_labels or not math.isnan(self._dense_miou)
        drop = drop_with_interval(self.dense, trial) if labelled else None
        return MeasuredPoint(
            part=self.part,
            thresholds=point.thresholds,
            images=len(trial.differing),
            predicted=point.predicted,
            flops_saved=trial.flops_saved,
            gmacs=float(np.mean(trial.gmacs)),
            kept=tuple(float(value) for value in np.mean(trial.kept, axis=0)),
            differing=trial.mean_differing,
            miou=ClassCounts.stacked(trial.counts).miou if labelled else None,
            drop=None if drop is None else drop.drop,
            drop_interval=None if drop is None else drop.interval,
            model_ms=median(trial.model_ms),
            judged=judged,
            met=self.budget.met(judged),
        )

    @property
    def _dense_miou(self) -> float:
        """In percent; NaN without a labelled pixel."""
        return ClassCounts.stacked(self.dense.counts).miou if self.dense.counts else math.nan

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
            dense_miou=None if math.isnan(self._dense_miou) else self._dense_miou,
            # Dense MACs are the same whatever was run, so any entry gives them.
            dense_gmacs=first.gmacs / (1.0 - first.flops_saved),
        )

    def classes(self, thresholds: tuple[float, ...], names: Sequence[str]) -> tuple[HeldOutClass, ...]:
        """Class by class what is lost at `thresholds`; none without labels."""
        trial = self.trials[thresholds]
        if not trial.counts:
            return ()
        dense, chosen = (ClassCounts.stacked(counts).total().iou for counts in (self.dense.counts, trial.counts))
        pairs = zip(names, dense.tolist(), chosen.tolist(), strict=True)
        return tuple(HeldOutClass(name=name, dense=_known(a), chosen=_known(b)) for name, a, b in pairs)

    def images(self, thresholds: tuple[float, ...], images: CalibrationImages) -> tuple[HeldOutImage, ...]:
        """Image by image what changes at `thresholds`."""
        trial, dense = self.trials[thresholds], self.dense
        return tuple(
            HeldOutImage(
                image=images.stems[index],
                differing=trial.differing[position],
                flops_saved=1.0 - trial.gmacs[position] / trial.gmacs_dense[position],
                dense_miou=_known(dense.counts[position].miou) if dense.counts else None,
                miou=_known(trial.counts[position].miou) if trial.counts else None,
            )
            for position, index in enumerate(dense.indices)
        )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _check_request(manifest: Manifest, images: CalibrationImages, budget: Budget) -> None:
    refuse_without_gates(manifest)
    if budget.needs_labels and not images.labelled:
        raise DatasetError(
            f"{images.name} has no labels, and a drop of mIoU cannot be measured without; "
            "give a labelled data set, or --max-disagree E --confidence C, which needs none"
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


def _checked(
    sequence: Sequence[CurvePoint],
    search: _PartResults,
    check: _PartResults,
    whole: _PartResults,
    promise: Promise | None,
) -> tuple[Judged, SequenceTest | None]:
    """The setting of `sequence` that is taken, and the test of a promise.

    A budget must be kept on the held-out images alone and on all images together; a promise is tested on the former.
    """
    search.measure(sequence)
    held_out = check.measure(sequence)
    both = [whole.judge(point, _on_all(point, search, check, whole)) for point in sequence]
    if promise is not None:
        test = _tested(promise, sequence, search, check, whole)
        return next(one for one in held_out if one.point.thresholds == test.sequence[test.boldest].thresholds), test
    met = [replace(one, met=one.met and other.met) for one, other in zip(held_out, both, strict=True)]
    final = accepted(met, limits_cost=check.budget.limits_cost)
    if final is None:
        alone = any(result.met for result in held_out)
        raise CheckError(
            _unmet(check.budget, whole.measured, "all images together")
            if alone
            else _unmet(check.budget, check.measured, "held-out images")
        )
    return final, None


def _on_all(point: CurvePoint, search: _PartResults, check: _PartResults, whole: _PartResults) -> Trial:
    """A setting that was run on both parts."""
    first, second = search.trials[point.thresholds], check.trials[point.thresholds]
    trial = joined_trials(first, search.dense, second, check.dense, whole.dense.units)
    whole.trials[point.thresholds] = trial
    return trial


def _tested(
    promise: Promise,
    sequence: Sequence[CurvePoint],
    search: _PartResults,
    check: _PartResults,
    whole: _PartResults,
) -> SequenceTest:
    """The test of a promise; raises CheckError where nothing can be promised."""
    promise.refuse_frames(whole.trials[sequence[-1].thresholds].differing)
    settings = [point.thresholds for point in sequence]
    points = [promise.budget.tested(check.trials[values], search.trials[values]) for values in settings]
    test = promise.test(points, searched=search.dense.units.count)
    if test is None:
        raise CheckError(_unmet(check.budget, check.measured, "held-out images"))
    return test


def _unmet(budget: Budget, measured: Sequence[MeasuredPoint], where: str) -> str:
    # Of FLOPs saved the most comes nearest to the limit, of everything else the least.
    nearest = max if budget.entry.kind == "flops" else min
    best = nearest(measured, key=lambda entry: entry.judged)
    values = ", ".join(f"{value:g}" for value in best.thresholds)
    return (
        f"{budget.entry.text}: not reached on the {where}; nearest: {best.judged:.4g} at thresholds {values}, "
        f"where {best.flops_saved:z.1%} of the MACs are saved. Allow more, or give more images"
    )
