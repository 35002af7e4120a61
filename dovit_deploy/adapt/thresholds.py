"""How much may the thresholds of an adapted network change? One percent of the pixels, or what is promised."""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.adapt.report import POINTS
from dovit_deploy.bundle.calibration import BudgetEntry, Calibration
from dovit_deploy.calibrate.budgets import DisagreeBudget
from dovit_deploy.calibrate.calibrate import calibrate
from dovit_deploy.calibrate.images import CalibrationImages
from dovit_deploy.calibrate.trial import DensePart, Trial
from dovit_deploy.calibrate.units import Units
from dovit_deploy.errors import CheckError
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.session import Session


@dataclass(frozen=True)
class AgreementBudget:
    """On average at most `points` percent of an image's pixels get another class than the dense network gives them."""

    points: float = POINTS
    limits_cost = False
    needs_labels = False
    repeat = 1

    @property
    def entry(self) -> BudgetEntry:
        text = f"on average at most {self.points:g}% of the pixels differ from the dense answer"
        return BudgetEntry(kind="max-disagree", limit=self.points / 100, text=text)

    def judged(self, dense: DensePart, trial: Trial, searched: Trial | None) -> float:
        del dense, searched
        return trial.mean_differing

    def promising(self, dense: DensePart, trial: Trial) -> bool:
        return self.met(self.judged(dense, trial, None))

    def met(self, judged: float) -> bool:
        return judged <= self.points / 100


@dataclass(frozen=True)
class ThresholdChoice:
    """The thresholds that were chosen, or why there are none."""

    budget: str
    """What they keep to, as a sentence."""
    calibration: Calibration | None
    refusal: str = ""
    """Why nothing stops."""


def chosen_thresholds(
    session: Session,
    images: CalibrationImages,
    *,
    promised: DisagreeBudget | None,
    units: Units | None,
    progress: StepProgress,
) -> ThresholdChoice:
    """Thresholds of the adapted bundle that `session` runs, searched on one part of `images` and checked on the other.

    Where none saves anything within one percent of the pixels that is no error: the bundle is then the dense network
    with gates at which nothing stops.

    Args:
        session: of the bundle.
        images: that nothing was fitted to, but where they are few.
        promised: what is promised of other images; None: one percent of the pixels on average.
        units: of the images, where something is promised.
        progress: is told of each step.

    Raises:
        CheckError: what is to be promised cannot be.
        UsageError: nobody says that the images are independent, and they are not.
    """
    if promised is not None:
        calibration = calibrate(session, images, promised, units=units, progress=progress)
        return ThresholdChoice(promised.entry.text, calibration)
    budget = AgreementBudget()
    try:
        return ThresholdChoice(budget.entry.text, calibrate(session, images, budget, progress=progress))
    except CheckError:
        return ThresholdChoice(budget.entry.text, None, f"no thresholds save MACs where {budget.entry.text}")
