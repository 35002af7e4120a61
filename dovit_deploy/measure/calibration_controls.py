"""What chosen thresholds must beat, on the held-back images: random and oracle at their counts, dense and smaller.

Run after the choice, which therefore cannot have been made by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dovit_deploy.bundle.calibration import Calibration, ChoiceControls, ControlPoint, SmallerPoint
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.drop import drop_with_interval
from dovit_deploy.measure.metrics import ClassCounts, Confusion
from dovit_deploy.measure.pictures import Picture, Pictures
from dovit_deploy.measure.split import halves
from dovit_deploy.measure.steering import SEED, Steering
from dovit_deploy.measure.trial import DensePart, Trial
from dovit_deploy.runtime.predictor import Predictor
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.session import Session


def controls_of_choice(
    session: Session,
    pictures: Pictures,
    calibration: Calibration,
    *,
    smaller: Sequence[Session],
    left_out: str | None,
    advance: Callable[[], None],
) -> ChoiceControls:
    """The controls of `calibration.chosen`.

    Args:
        session, pictures: that `calibration` was made with.
        smaller: sessions of the same network at other input sizes, run dense.
        left_out: why there are none of them.
        advance: told after every picture.

    Raises:
        DatasetError: the pictures have no labels.
    """
    if not pictures.labelled:
        raise DatasetError(f"{pictures.name} has no labels; accuracy cannot be compared without")
    runner = _Controls(session, calibration.chosen.thresholds, smaller)
    parts = halves(pictures.stems, seed=calibration.seed)
    dense = DensePart(parts.check, parts.blocks_of(parts.check))
    for place, index in enumerate(parts.check):
        runner.run(dense, pictures.picture(index), place)
        advance()
    sizes = zip(smaller, runner.smaller, strict=True)
    return ChoiceControls(
        random=_point(dense, runner.random),
        oracle=_point(dense, runner.oracle),
        smaller_input=tuple(
            SmallerPoint(**dict(_point(dense, trial)), size=small.bundle.manifest.spec.size, engine=small.backend.name)
            for small, trial in sizes
        ),
        left_out=left_out,
        seed=SEED,
    )


class _Controls:
    """Every control on one picture after the other."""

    def __init__(self, session: Session, thresholds: tuple[float, ...], smaller: Sequence[Session]) -> None:
        self.thresholds, self.classes = thresholds, session.bundle.manifest.spec.classes
        self.rule, self.steering = Predictor(session), Steering(session)
        self.predictors = [Predictor(small) for small in smaller]
        self.random, self.oracle = Trial(thresholds), Trial(thresholds)
        self.smaller = [Trial(()) for _ in smaller]

    def run(self, part: DensePart, picture: Picture, place: int) -> None:
        """Count the answers to the picture at `place` of `part`."""
        rgb = picture.rgb
        dense, logits = self.steering.dense(rgb)
        tokens = self.rule.predict(rgb, thresholds=self.thresholds).tokens
        results = [self.steering.random(rgb, tokens, number=place), self.steering.oracle(rgb, tokens, logits)]
        results += [predictor.predict(rgb, dense=True) for predictor in self.predictors]
        part.counts.append(self._counts(picture, dense))
        for trial, result in zip((self.random, self.oracle, *self.smaller), results, strict=True):
            trial.counts.append(self._counts(picture, result))
            trial.gmacs.append(result.tokens.gmacs_actual)
            trial.gmacs_dense.append(dense.tokens.gmacs_dense)

    def _counts(self, picture: Picture, result: SegmentationResult) -> ClassCounts:
        assert picture.label is not None
        return Confusion.of(picture.label, result.class_map, classes=self.classes).counts


def _point(dense: DensePart, trial: Trial) -> ControlPoint:
    drop = drop_with_interval(dense, trial)
    return ControlPoint(
        flops_saved=trial.flops_saved,
        gmacs=float(np.mean(trial.gmacs)),
        miou=ClassCounts.stacked(trial.counts).miou,
        drop=drop.drop,
        drop_interval=drop.interval,
    )
