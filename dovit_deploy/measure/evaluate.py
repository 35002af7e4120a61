"""Evaluating what is deployed: every image of a set dense, dynamic and under the controls, through one session.

All ways of running see the same decoded image in turn, so that their answers are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.datasets.classification import LabelledImages
from dovit_deploy.datasets.dataset import ClassList, Dataset, Sample
from dovit_deploy.errors import DatasetError, UsageError
from dovit_deploy.measure.controls import Steering
from dovit_deploy.measure.intervals import Hits, top_hits
from dovit_deploy.measure.metrics import ClassCounts, Confusion, boundary_counts
from dovit_deploy.runtime.classification import ClassificationResult, Classifier
from dovit_deploy.runtime.results import FrameTokens, Logits
from dovit_deploy.runtime.segmentation import Predictor, SegmentationResult
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import Thresholds

Advance = Callable[[float], None]
"""Told after every image what share of its MACs was saved."""


@dataclass
class Tally:
    """One way of running the bundle, image by image."""

    pixels: list[ClassCounts] = field(default_factory=list)
    boundary: list[ClassCounts] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    """Tokens entering each stage, summed over the windows."""
    gmacs: list[float] = field(default_factory=list)

    def add(self, sample: Sample, result: SegmentationResult, *, classes: int) -> None:
        """Count one image's answer."""
        self.pixels.append(Confusion.of(sample.label, result.class_map, classes=classes).counts)
        self.boundary.append(boundary_counts(sample.label, result.class_map, classes=classes))
        self.kept.append(result.tokens.kept)
        self.gmacs.append(result.tokens.gmacs_actual)

    @property
    def counts(self) -> ClassCounts:
        """Of all images, (n, K)."""
        return ClassCounts.stacked(self.pixels)

    @property
    def boundary_counts(self) -> ClassCounts:
        """Of the bands along the contours of all images, (n, K)."""
        return ClassCounts.stacked(self.boundary)


@dataclass
class Measured:
    """All ways of running, over the whole set."""

    stems: list[str] = field(default_factory=list)
    dense: Tally = field(default_factory=Tally)
    dynamic: Tally = field(default_factory=Tally)
    random: Tally = field(default_factory=Tally)
    first_gate: Tally = field(default_factory=Tally)
    oracle: Tally = field(default_factory=Tally)
    oracle_unlimited: Tally = field(default_factory=Tally)
    smaller: list[Tally] = field(default_factory=list)


def check_classes(classes: ClassList, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not the bundle's.

    Raises:
        DatasetError: another number of classes, or the same names in another order.
    """
    own, given = [entry.name.lower() for entry in manifest.classes], [name.lower() for name in classes.names]
    if len(own) != len(given):
        raise DatasetError(
            f"the data set has {len(given)} classes ({_few(given)}), the bundle {manifest.name} has {len(own)} "
            f"({_few(own)}); evaluate on a data set of the bundle's classes"
        )
    if own != given and sorted(own) == sorted(given):
        place = next(number for number in range(len(own)) if own[number] != given[number])
        raise DatasetError(
            f"class {place} is '{given[place]}' in the data set and '{own[place]}' in the bundle {manifest.name}: "
            "the same names in another order; number the labels as the bundle does"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def measure_set(
    session: Session,
    data: Dataset,
    *,
    thresholds: Thresholds | None,
    controls: bool,
    smaller: Sequence[Session] = (),
    advance: Advance,
) -> Measured:
    """Run every image of `data` in every way.

    Args:
        session: of the deployed bundle.
        data: of the bundle's classes.
        thresholds: None: the bundle's own.
        controls: also the random, the first-gate and both oracle controls.
        smaller: sessions of the same network at other input sizes, run dense.
        advance: told after each image.

    Raises:
        DatasetError: other classes, a file that cannot be used, or no labelled pixel in the whole set.
        UsageError: controls of a model without gates, or thresholds out of range.
    """
    manifest = session.bundle.manifest
    check_classes(data.classes, manifest)
    if controls and not manifest.spec.gates:
        raise UsageError(f"{manifest.name} is a model without gates; there is nothing to control")
    # A fault in the last image is found before the first is run, not an hour later.
    data.check()
    measured = Measured(smaller=[Tally() for _ in smaller])
    runner = _ImageRunner(session, thresholds=thresholds, controls=controls)
    predictors = [Predictor(small) for small in smaller]
    for number in range(len(data)):
        sample = data.sample(number)
        saved = runner.run(measured, sample, number)
        for predictor, tally in zip(predictors, measured.smaller, strict=True):
            tally.add(sample, predictor.predict(sample.rgb, dense=True), classes=manifest.spec.classes)
        advance(saved)
    if not measured.dense.counts.true.sum():
        raise DatasetError(f"{data.name}: no labelled pixel in the whole split")
    return measured


class _ImageRunner:
    """One image at a time, in every way."""

    def __init__(self, session: Session, *, thresholds: Thresholds | None, controls: bool) -> None:
        self.thresholds, self.controls = thresholds, controls
        self.classes = session.bundle.manifest.spec.classes
        self.predictor, self.steering = Predictor(session), Steering(session)

    def run(self, measured: Measured, sample: Sample, number: int) -> float:
        """Count the answers to image `number`; returns the share of its MACs that was saved."""
        dense, logits = self.steering.dense(sample.rgb)
        measured.stems.append(sample.stem)
        measured.dense.add(sample, dense, classes=self.classes)
        dynamic = self.predictor.predict(sample.rgb, thresholds=self.thresholds)
        measured.dynamic.add(sample, dynamic, classes=self.classes)
        if self.controls:
            self._control(measured, sample, number, dynamic.tokens, logits)
        return dynamic.tokens.flops_saved

    def _control(
        self, measured: Measured, sample: Sample, number: int, tokens: FrameTokens, logits: Sequence[Logits]
    ) -> None:
        steering, rgb = self.steering, sample.rgb
        for tally, result in (
            (measured.random, steering.random(rgb, tokens, number=number)),
            (measured.first_gate, steering.first_gate(rgb)),
            (measured.oracle, steering.oracle(rgb, tokens, logits)),
            (measured.oracle_unlimited, steering.unlimited_oracle(rgb, logits)),
        ):
            tally.add(sample, result, classes=self.classes)


# Evaluating a classifier: every picture of a set dense and dynamic through one session, and under dense controls.
#
# All ways of running see the same decoded picture in turn, so that their answers are paired.

TOP = 5


@dataclass
class AnswerTally:
    """One way of running the bundle, picture by picture."""

    ranked: list[tuple[int, ...]] = field(default_factory=list)
    """Ids of the most probable classes, the most probable first."""
    kept: list[tuple[int, ...]] = field(default_factory=list)
    gmacs: list[float] = field(default_factory=list)

    def add(self, result: ClassificationResult) -> None:
        """Note one picture's answer."""
        self.ranked.append(tuple(entry.id for entry in result.classes))
        self.kept.append(result.tokens.kept)
        self.gmacs.append(result.tokens.gmacs_actual)

    def hits(self, labels: Sequence[int], *, top: int) -> Hits:
        """Whether each label is among the first `top` classes."""
        return top_hits(self.ranked, labels, top=top)


@dataclass
class MeasuredPictures:
    """All ways of running, over the whole set."""

    stems: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    dense: AnswerTally | None = None
    """None: the bundle has no dense form."""
    dense_gmacs: list[float] = field(default_factory=list)
    """10^9 MACs of the dense network, also where it cannot be run."""
    dynamic: AnswerTally = field(default_factory=AnswerTally)
    smaller: list[AnswerTally] = field(default_factory=list)


def check_picture_classes(data: LabelledImages, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not the bundle's.

    Raises:
        DatasetError: another number of classes, or the same names in another order.
    """
    own, given = [entry.name.lower() for entry in manifest.classes], [entry.name.lower() for entry in data.classes]
    if len(own) != len(given):
        raise DatasetError(
            f"{data.order} gives {len(given)} classes, the bundle {manifest.name} has {len(own)}; where only some "
            "classes have pictures, list all of them in classes.json or synsets.txt beside the splits"
        )
    if own != given and sorted(own) == sorted(given):
        place = next(number for number in range(len(own)) if own[number] != given[number])
        raise DatasetError(
            f"class {place} is '{given[place]}' by {data.order} and '{own[place]}' in the bundle {manifest.name}: "
            "the same names in another order; list them as the bundle does in classes.json"
        )


def measure_pictures(
    session: Session,
    data: LabelledImages,
    *,
    thresholds: Thresholds | None,
    smaller: Sequence[Session] = (),
    advance: Advance,
) -> MeasuredPictures:
    """Run every picture of `data` in every way that the bundle has.

    Args:
        session: of the deployed bundle, a classifier.
        data: of the bundle's classes.
        thresholds: None: the bundle's own.
        smaller: sessions of the same network at other input sizes, run dense.
        advance: told after each picture.

    Raises:
        DatasetError: other classes, or a picture that cannot be decoded.
        UsageError: the bundle is no classifier, or thresholds for a model without gates.
        CheckError: the model's logits are not finite.
    """
    manifest = session.bundle.manifest
    classifier = Classifier(session, top=TOP)
    check_picture_classes(data, manifest)
    # A fault in the last picture is found before the first is run, not an hour later.
    data.check()
    small = [Classifier(one, top=TOP) for one in smaller]
    measured = MeasuredPictures(
        dense=AnswerTally() if manifest.spec.has_dense else None, smaller=[AnswerTally() for _ in smaller]
    )
    for number in range(len(data)):
        picture = data.sample(number)
        measured.stems.append(picture.stem)
        measured.labels.append(picture.label)
        if measured.dense is not None:
            measured.dense.add(classifier.predict(picture.rgb, dense=True))
        answer = classifier.predict(picture.rgb, thresholds=thresholds)
        measured.dynamic.add(answer)
        measured.dense_gmacs.append(answer.tokens.gmacs_dense)
        for one, tally in zip(small, measured.smaller, strict=True):
            tally.add(one.predict(picture.rgb, dense=True))
        advance(answer.tokens.flops_saved)
    return measured
