"""What can thresholds be made to keep to? A budget judges one real run by one number.

Along the curve from cautious to bold an accuracy budget is met at the cautious end, a cost budget at the bold end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from dovit_deploy.betting import Values, best_bet, p_value, units_needed, upper_bound
from dovit_deploy.bundle.calibration import BudgetEntry, Interval, SequenceStep
from dovit_deploy.calibrate.trial import DensePart, Trial
from dovit_deploy.errors import CheckError, DatasetError, UsageError
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.measure.bench import median
from dovit_deploy.measure.intervals import FEWEST_BLOCKS, miou_drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.latency import LatencyModel

ORDER_SEED = 0
"""Of the order in which the losses of units are bet on."""


@dataclass(frozen=True)
class Drop:
    """Points of mIoU lost from dense to dynamic on the same images, and their 95 % interval."""

    drop: float
    interval: Interval | None
    """None: too few blocks."""

    @property
    def highest(self) -> float:
        """The upper end of the interval; without one the drop itself."""
        return self.drop if self.interval is None else self.interval.high


def drop_with_interval(dense: DensePart, trial: Trial) -> Drop:
    """How much mIoU `trial` loses against `dense`, resampling blocks of images in pairs.

    Raises:
        DatasetError: no pixel is labelled.
    """
    before, after = ClassCounts.stacked(dense.counts), ClassCounts.stacked(trial.counts)
    drop, ends = before.miou - after.miou, miou_drop_interval(before, after, dense.blocks)
    if math.isnan(drop):
        raise DatasetError("no labelled pixel in the images: there is no mIoU")
    return Drop(drop, None if ends is None else Interval(low=ends[0], high=ends[1]))


class Budget(Protocol):
    """A limit and how a trial is judged by it."""

    limits_cost: bool
    """True: of the settings that meet it the most accurate is wanted; False: the cheapest."""
    needs_labels: bool

    @property
    def repeat(self) -> int:
        """Runs of each setting on each image: more than one only where time is measured."""

    @property
    def entry(self) -> BudgetEntry:
        """The limit, as it stands in `calibration.json`."""

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        """The number that is compared with the limit; `searched`: the same setting on the images of the search."""

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        """Whether the search may stop here: the limit is kept as far as the images of the search show."""

    def met(self, judged: float) -> bool:
        """Whether the judged number is within the limit."""


@dataclass(frozen=True)
class DropBudget:
    """The upper end of the 95 % interval of the mIoU drop is at most `points`; without interval, the drop itself."""

    points: float
    limits_cost = False
    needs_labels = True
    repeat = 1

    def __post_init__(self) -> None:
        # Written so that NaN is refused, too; likewise below.
        if not 0 < self.points <= 100:
            raise UsageError(f"--max-drop {self.points:g}: points of mIoU above 0 and at most 100 are needed")

    @property
    def entry(self) -> BudgetEntry:
        text = (
            f"mIoU drop at most {self.points:g} points (upper end of its 95 % interval; "
            f"the drop itself where fewer than {FEWEST_BLOCKS} blocks give none)"
        )
        return BudgetEntry(kind="max-drop", limit=self.points, text=text)

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        del searched
        return drop_with_interval(dense, trial).highest

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        # The drop alone: its interval is judged on images that the search did not choose by.
        return drop_with_interval(dense, trial).drop <= self.points

    def met(self, judged: float) -> bool:
        return judged <= self.points


@dataclass(frozen=True)
class FlopsBudget:
    """At least `fraction` of the whole model's dense MACs is saved."""

    fraction: float
    limits_cost = True
    needs_labels = False
    repeat = 1

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise UsageError(f"--flops {self.fraction:g}: the fraction of MACs to save, between 0 and 1, is needed")

    @property
    def entry(self) -> BudgetEntry:
        text = f"at least {self.fraction:.1%} of the whole model's MACs saved"
        return BudgetEntry(kind="flops", limit=self.fraction, text=text)

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        del dense, searched
        return trial.flops_saved

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        return self.met(self.judged(dense, trial, None))

    def met(self, judged: float) -> bool:
        return judged >= self.fraction


@dataclass(frozen=True)
class LatencyBudget:
    """The median model step takes at most `milliseconds` here, by a latency model or, without one, as measured."""

    milliseconds: float
    model: LatencyModel | None = None
    """Of the session that is calibrated: what it says of token counts is the same in every run of them."""
    limits_cost = True
    needs_labels = False

    def __post_init__(self) -> None:
        if not 0 < self.milliseconds < float("inf"):
            raise UsageError(f"--latency-ms {self.milliseconds:g}: a finite number of milliseconds above 0 is needed")

    @property
    def repeat(self) -> int:
        """More than one where the time itself is judged."""
        return 3 if self.model is None else 1

    def by(self, model: LatencyModel, spec: ModelSpec) -> Self:
        """This, judged by `model`.

        Raises:
            CheckError: it takes longer even if every token of a window stops at the first gate.
        """
        least = model.milliseconds((spec.tokens, *[spec.extra_tokens] * len(spec.gates)))
        if least > self.milliseconds:
            raise CheckError(
                f"{self.entry.text}: not reached even if every token stops at the first gate; "
                f"that takes {least:.4g} ms",
                # It is kept for long, and the machine may have been busy when it was made.
                f"by the latency model of {model.date[:10]}; dovit cache prune --all forgets it, and all else",
            )
        return replace(self, model=model)

    @property
    def entry(self) -> BudgetEntry:
        by = "" if self.model is None else f", by a latency model that is {self.model.error:.1%} wrong (median)"
        text = f"median model step at most {self.milliseconds:g} ms on this machine{by}"
        return BudgetEntry(kind="latency-ms", limit=self.milliseconds, text=text)

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        del dense, searched
        if self.model is None:
            return median(trial.model_ms)
        return median([sum(map(self.model.milliseconds, windows)) for windows in trial.windows])

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        return self.met(self.judged(dense, trial, None))

    def met(self, judged: float) -> bool:
        return judged <= self.milliseconds


@dataclass(frozen=True)
class DisagreeBudget:
    """With `confidence`, at most `share` of the pixels get another class than the dense model gives them."""

    share: float
    confidence: float
    limits_cost = False
    needs_labels = False
    repeat = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"--max-disagree {self.share:g}: a share of the pixels between 0 and 1 is needed")
        # Below 0.5 a "confident" statement would more likely be wrong than right.
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence:g}: a probability from 0.5 to below 1 is needed, as 0.95")

    @property
    def entry(self) -> BudgetEntry:
        text = (
            f"at most {self.share:.2%} of the pixels differ from the dense answer, with confidence {self.confidence:g}"
        )
        return BudgetEntry(kind="max-disagree", limit=self.share, confidence=self.confidence, text=text)

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        del dense
        # On the images of the search alone the bet is one of hindsight: that only chooses what is tested.
        return upper_bound(_drawn(trial), bet=self.bet(searched or trial), confidence=self.confidence)

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        # The mean alone: its bound is judged on images that the search did not choose by.
        del dense
        return float(trial.losses.mean()) <= self.share

    def met(self, judged: float) -> bool:
        return judged <= self.share

    @property
    def least_units(self) -> int:
        """Independent units that a test of it takes, even if no pixel differs."""
        return units_needed(self.share, confidence=self.confidence)

    def bet(self, searched: Trial) -> float:
        """What is staked in the test of a setting, from what it does on the images of the search."""
        return best_bet(searched.losses, limit=self.share)

    def tested(self, trial: Trial, searched: Trial) -> SequenceStep:
        """The test of a setting on held-out images; `searched`: the same setting on the images of the search."""
        bet, losses = self.bet(searched), _drawn(trial)
        p = p_value(losses, limit=self.share, bet=bet)
        return SequenceStep(
            thresholds=trial.thresholds,
            flops_saved=trial.flops_saved,
            differing=float(losses.mean()),
            bet=bet,
            p_value=p,
            bound=upper_bound(losses, bet=bet, confidence=self.confidence),
            shown=p <= 1 - self.confidence,
        )


def _drawn(trial: Trial) -> Values:
    """The losses in an order that has nothing to do with them, the same every time."""
    return np.random.default_rng(ORDER_SEED).permutation(trial.losses)
