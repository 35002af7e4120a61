"""Evaluating a classifier: every picture of a set dense and dynamic through one session, and under dense controls.

All ways of running see the same decoded picture in turn, so that their answers are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.accuracy import Hits, top_hits
from dovit_deploy.measure.evaluate import Advance
from dovit_deploy.measure.labelled_pictures import LabelledPictures
from dovit_deploy.runtime.classification import ClassificationResult
from dovit_deploy.runtime.classifier import Classifier
from dovit_deploy.runtime.gate_inputs import Thresholds
from dovit_deploy.runtime.session import Session

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


def check_picture_classes(data: LabelledPictures, manifest: Manifest) -> None:
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
    data: LabelledPictures,
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
        picture = data.picture(number)
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
