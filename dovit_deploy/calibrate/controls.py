"""What chosen thresholds must beat, on the held-out images: random and oracle at their counts, dense and smaller.

Run after the choice, which therefore cannot have been made by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, ControlPoint, Interval, SmallerPoint
from dovit_deploy.calibrate.images import CalibrationImages, SplitImages, halves
from dovit_deploy.datasets.dataset import DatasetPart
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.controls import CONTROL_SEED
from dovit_deploy.measure.evaluate import EvalPlan, Measured, SegmentationTally, evaluate
from dovit_deploy.measure.intervals import Blocks
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

NAMES = ("random", "oracle")


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
        advance: called after every image.

    Raises:
        DatasetError: the images have no labels.
    """
    if not isinstance(images, SplitImages):
        raise DatasetError(f"{images.name} has no labels; accuracy cannot be compared without")
    # By the calibration's own seed: the images that the choice was checked on.
    parts = halves(images.blocks, seed=calibration.seed)
    settings = RunSettings.resolve(session.bundle.manifest, thresholds=calibration.chosen.thresholds)
    plan = EvalPlan(images.name, images.split, settings, controls=NAMES)
    held_out = DatasetPart(images.data, parts.check)
    measured = evaluate(session, held_out, SegmentationTally, plan, smaller=smaller, advance=advance)
    # The blocks of the choice itself, so that the intervals can be compared; the part's own might be cut elsewhere.
    blocks = images.blocks.of(parts.check)
    assert measured.controls is not None
    random, oracle = (_point(measured, measured.controls[name], blocks) for name in NAMES)
    return ChoiceControls(
        random=random,
        oracle=oracle,
        smaller_input=tuple(
            SmallerPoint(**dict(_point(measured, run.tally, blocks)), size=run.size, engine=run.engine)
            for run in measured.smaller
        ),
        left_out=left_out,
        seed=CONTROL_SEED,
    )


def _point(measured: Measured[SegmentationTally], tally: SegmentationTally, blocks: Blocks) -> ControlPoint:
    assert measured.dense is not None
    interval = tally.drop_interval(measured.dense, blocks)
    return ControlPoint(
        flops_saved=1 - sum(tally.gmacs) / sum(measured.dense_gmacs),
        gmacs=float(np.mean(tally.gmacs)),
        miou=tally.score,
        drop=measured.dense.score - tally.score,
        drop_interval=None if interval is None else Interval(low=interval[0], high=interval[1]),
    )
