"""The drop of mIoU from dense to dynamic on the same images, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from dovit_deploy.bundle.calibration import Interval
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.bootstrap import drop_interval
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.measure.trial import DensePart, Trial


@dataclass(frozen=True)
class Drop:
    """mIoU points lost, and the 95 % interval."""

    drop: float
    interval: Interval


def drop_with_interval(dense: DensePart, trial: Trial) -> Drop:
    """How much mIoU `trial` loses against `dense`, resampling blocks of images in pairs.

    Raises:
        DatasetError: no pixel is labelled.
    """
    before, after = ClassCounts.stacked(dense.counts), ClassCounts.stacked(trial.counts)
    ends = drop_interval(before, after, dense.blocks)
    if ends is None:
        raise DatasetError("no interval of the drop: too few images, or no labelled pixel in them")
    return Drop(before.miou - after.miou, Interval(low=ends[0], high=ends[1]))
