"""What chosen thresholds must beat, on the held-out images: others at their counts, and dense at smaller inputs.

Run after the choice, which therefore cannot have been made by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, ControlPoint, Interval, SmallerPoint
from dovit_deploy.calibrate.images import CalibrationImages, SplitImages, indices_of
from dovit_deploy.datasets.dataset import DatasetPart
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.controls import CONTROL_SEED
from dovit_deploy.measure.decisions import decisions_of
from dovit_deploy.measure.evaluate import EvalPlan, Measured, SegmentationTally, evaluate
from dovit_deploy.measure.intervals import Blocks
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

NAMES = ("random", "oracle", "position", "other")


def controls_of_choice(
    session: Session,
    images: CalibrationImages,
    calibration: Calibration,
    *,
    smaller: Sequence[Session],
    left_out: str | None,
    advance: Callable[[float], None],
) -> ChoiceControls:
    """The controls of `calibration.chosen`.

    Args:
        session, images: that `calibration` was made with.
        smaller: sessions of the same network at other input sizes, run dense.
        left_out: why there are none of them.
        advance: called after every held-out image.

    Raises:
        DatasetError: the images have no labels.
    """
    if not isinstance(images, SplitImages):
        raise DatasetError(f"{images.name} has no labels; accuracy cannot be compared without")
    searched_images, held_out_images = (indices_of(calibration, images, part) for part in ("search", "check"))
    settings = RunSettings.resolve(session.bundle.manifest, thresholds=calibration.chosen.thresholds)
    plan = EvalPlan(images.name, images.split, settings, controls=NAMES)
    held_out = DatasetPart(images.data, held_out_images)
    # The blocks of the choice itself, so that the intervals can be compared; the part's own might be cut elsewhere.
    blocks = images.blocks.of(held_out_images)
    # Positions are learned where the thresholds were: on the images of the search.
    searched = DatasetPart(images.data, searched_images)
    decisions = decisions_of(session, held_out, settings, blocks, source=searched)
    measured = evaluate(
        session, held_out, SegmentationTally, plan, smaller=smaller, decisions=decisions, advance=advance
    )
    assert measured.controls is not None
    points = {name: _point(measured, tally, blocks) for name, tally in measured.controls.items()}
    return ChoiceControls(
        random=points["random"],
        oracle=points["oracle"],
        position=points.get("position"),
        other=points.get("other"),
        smaller_input=tuple(
            SmallerPoint(**dict(_point(measured, run.tally, blocks)), size=run.size, engine=run.engine)
            for run in measured.smaller
        ),
        left_out=left_out,
        seed=CONTROL_SEED,
    )


def _point(measured: Measured[SegmentationTally], tally: SegmentationTally, blocks: Blocks) -> ControlPoint:
    assert measured.dense is not None
    rule = measured.dynamic
    return ControlPoint(
        flops_saved=1 - sum(tally.gmacs) / sum(measured.dense_gmacs),
        gmacs=float(np.mean(tally.gmacs)),
        miou=tally.score,
        drop=measured.dense.score - tally.score,
        drop_interval=_interval(tally.drop_interval(measured.dense, blocks)),
        rule_gain=rule.score - tally.score,
        rule_gain_interval=_interval(tally.drop_interval(rule, blocks)),
    )


def _interval(ends: tuple[float, float] | None) -> Interval | None:
    return None if ends is None else Interval(low=ends[0], high=ends[1])
