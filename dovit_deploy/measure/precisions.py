"""What does each precision lose against fp32? Measured on images, dynamic, at the bundle's own thresholds.

Both run the same images: the share of pixels whose class agrees, the drop of mIoU where there are labels, and of every
gate how far the confidences are apart while the decisions of fp32 are replayed. `parity.json` keeps the answers, and
whoever chooses an engine reads them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.bundle.parity import PrecisionParity
from dovit_deploy.errors import CheckError, DatasetError, EnvironmentProblem
from dovit_deploy.measure.agreement import classes_of
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.printing import plural
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.results import Answer, ClassMap, Pixels, TokenReport
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings, index_from_keep
from dovit_deploy.runtime.tasks import ImageResult, predictor_for
from dovit_deploy.runtime.transforms import to_class_map
from dovit_deploy.sources.source import RGB, ImageSet

CPU_PRECISIONS = (("onnxruntime", "int8"), ("openvino", "bf16"), ("openvino", "int8"))
"""Engines and precisions of the CPU that are not fp32."""

SHOWN = 4
"""Classes that are named of images without labels."""
NEARLY_ALL = 0.995
"""Share of all pixels: of images that a model knows nothing of, it often finds one class everywhere."""


class ComparedImage(Protocol):
    """An image that answers are compared on."""

    @property
    def rgb(self) -> RGB: ...
    @property
    def label(self) -> ClassMap | None: ...


def measured_precisions(
    bundle: Bundle,
    images: ImageSet[ComparedImage],
    *,
    progress: StepProgress,
    remark: Callable[[str], None] | None,
) -> tuple[PrecisionParity, ...]:
    """One entry for every precision of `CPU_PRECISIONS` that bundle, installed packages and this CPU have.

    Args:
        bundle: any.
        images: answers are compared on.
        progress: is told of each step.
        remark: called with what the user should know of the images; None: they are known to be such as the model is
            for, and are not judged.

    Raises:
        CheckError: an answer is not finite.
        DatasetError: the images are labelled, and fp32 knows less of them than somebody who does not look at them, or
            the labels say nothing.
    """
    found = []
    reference: list[_Found] | None = None
    for engine, precision in CPU_PRECISIONS:
        if precision == "int8" and precision not in bundle.manifest.precisions:
            continue
        try:
            session = Session(bundle, engine=engine, precision=precision)
        except EnvironmentProblem:
            # Not installed, or this CPU does not compute in it: nothing can be said of it here.
            continue
        with session:
            if reference is None:
                progress.begin("run fp32", len(images), unit="images")
                reference = _reference(bundle, images, progress)
                if remark is not None:
                    check_domain(bundle.manifest, reference, images, remark=remark)
            progress.begin(f"measure {engine} {precision}", len(images), unit="images")
            found.append(_compared(session, reference, images, progress))
    return tuple(found)


def points_of_miou(
    manifest: Manifest, images: ImageSet[ComparedImage]
) -> Callable[[Sequence[Answer], Sequence[Answer]], float | None]:
    """Says what is lost between answers (1, K, h, w) to `images`, whole ones; None where no label says anything."""
    spec, cover = manifest.spec, manifest.preprocessing.logits_cover

    def lost(before: Sequence[Answer], after: Sequence[Answer]) -> float | None:
        scores = _Scores(len(manifest.classes))
        for image, *answers in zip(images, before, after, strict=True):
            if image.label is not None:
                size = (image.label.shape[0], image.label.shape[1])
                maps = (to_class_map(one[0], spec.size, size, cover=cover, patch=spec.patch) for one in answers)
                scores.add(image.label, *maps)
        return None if scores.drop is None or np.isnan(scores.drop) else scores.drop

    return lost


def refuse_losses(found: Sequence[PrecisionParity], *, asked: Sequence[str], max_drop: float) -> None:
    """Raise CheckError for a precision among `asked` that loses more than `max_drop` points in some engine."""
    for one in found:
        # Written so that NaN is refused.
        if one.precision in asked and not one.lost <= max_drop:
            what = "of the pixels get another class" if one.drop is None else "of mIoU"
            raise CheckError(
                f"{one.precision} in {one.engine} loses {one.lost:.2f} points ({what}) on "
                f"{plural(one.images, 'image')}, --max-drop allows {max_drop:g}; allow more, or leave it out"
            )


@dataclass(frozen=True)
class _Found:
    """What fp32 finds in one image."""

    classes: npt.NDArray[Any]
    """(H, W), or (1, 1) of a classifier."""
    reports: tuple[TokenReport, ...]
    """Of its windows."""


def _found(result: ImageResult) -> _Found:
    return _Found(classes_of(result), tuple(window.report for window in result.tokens.windows))


def check_domain(
    manifest: Manifest,
    found: Sequence[_Found],
    images: Iterable[ComparedImage],
    *,
    remark: Callable[[str], None],
) -> None:
    """Are these images of the kind that the model knows? Ranges of others would not fit what it will see.

    Labels can show that they are not; without, the user is told what the model finds in them.

    Raises:
        DatasetError: with labels, and none of them says anything, or the model is right less often than the most
            frequent class everywhere would be.
    """
    scores = _Scores(len(manifest.classes))
    for image, one in zip(images, found, strict=True):
        if image.label is not None:
            scores.add(image.label, one.classes, one.classes)
    if scores.right is None:
        remark(f"--calibration: {_what_is_found([entry.name for entry in manifest.classes], found)}")
    elif np.isnan(scores.right):
        raise DatasetError(
            f"--calibration: no pixel of the labels of {plural(len(found), 'image')} has a class, so that nothing can "
            "be said of what is lost; give labels with classes, or the images alone"
        )
    elif scores.right < scores.most_frequent:
        raise DatasetError(
            f"--calibration: the model is right on {scores.right:.1f} % of the labelled pixels, and the most frequent "
            f"class alone on {scores.most_frequent:.1f} %; give images of the kind that it was trained on, with its "
            "classes"
        )
    else:
        remark(f"--calibration: the model is right on {scores.right:.1f} % of the labelled pixels")


def _what_is_found(names: Sequence[str], found: Sequence[_Found]) -> str:
    """The most frequent classes with their shares; with a question where there is hardly another."""
    seen = np.sum([np.bincount(one.classes.ravel(), minlength=len(names)) for one in found], axis=0)
    shares = seen / seen.sum()
    most = [number for number in np.argsort(-shares, kind="stable")[:SHOWN] if seen[number]]
    line = "the model finds " + ", ".join(f"{names[number]} {shares[number]:.1%}" for number in most)
    several = len(found) > 1 or found[0].classes.size > 1
    doubt = several and shares.max() > NEARLY_ALL
    return f"{line}; are these images of the kind that it was trained on?" if doubt else line


class _Replaying:
    """A session that runs each window twice: as its gates decide, and with the decisions of fp32 replayed."""

    def __init__(self, session: Session) -> None:
        self.bundle, self._session = session.bundle, session
        self.expected: list[TokenReport] = []
        """Of the windows that are still to come."""
        self.errors = np.zeros(len(session.bundle.manifest.spec.gates))
        """(gates,): the largest difference of a confidence so far."""

    def run_one(self, pixels: Pixels, settings: RunSettings) -> tuple[Answer, TokenReport]:
        expected = self.expected.pop(0)
        if len(self.errors):
            replay = index_from_keep(list(expected.keep), self.bundle.manifest.spec)
            _, replayed = self._session.run_one(pixels, RunSettings(settings.thresholds, settings.floor, replay))
            pairs = zip(expected.confidence, replayed.confidence, strict=True)
            self.errors = np.maximum(self.errors, [_largest(want - got) for want, got in pairs])
        return self._session.run_one(pixels, settings)


def _largest(difference: npt.NDArray[np.float32]) -> float:
    """NaN where a head was not evaluated."""
    return float(np.abs(difference[np.isfinite(difference)]).max(initial=0.0))


def _reference(bundle: Bundle, images: Iterable[ComparedImage], progress: StepProgress) -> list[_Found]:
    settings, found = RunSettings.resolve(bundle.manifest), []
    with Session(bundle) as session:
        predictor = predictor_for(session)
        for image in images:
            found.append(_found(predictor.run(image.rgb, settings)))
            progress.advance()
    return found


def _compared(
    session: Session, reference: Sequence[_Found], images: Iterable[ComparedImage], progress: StepProgress
) -> PrecisionParity:
    manifest, replaying = session.bundle.manifest, _Replaying(session)
    settings, predictor = RunSettings.resolve(manifest), predictor_for(replaying)
    agreements, counts = [], _Scores(len(manifest.classes))
    for image, want in zip(images, reference, strict=True):
        replaying.expected = list(want.reports)
        got = _found(predictor.run(image.rgb, settings))
        agreements.append(float((want.classes == got.classes).mean()))
        if image.label is not None:
            counts.add(image.label, want.classes, got.classes)
        progress.advance()
    return PrecisionParity(
        engine=session.backend.name,
        precision=session.backend.precision,
        agreement=float(np.mean(agreements)),
        drop=counts.drop,
        confidence_error=tuple(float(error) for error in replaying.errors),
        images=len(agreements),
    )


class _Scores:
    """Pixels of labelled images, as fp32 and as another precision classify them."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._before: list[ClassCounts] = []
        self._after: list[ClassCounts] = []

    def add(self, label: ClassMap, before: ClassMap, after: ClassMap) -> None:
        """Count one image."""
        self._before.append(ClassCounts.of(label, before, classes=self._classes))
        self._after.append(ClassCounts.of(label, after, classes=self._classes))

    @property
    def right(self) -> float | None:
        """Percent of the labelled pixels that fp32 classifies as their label says, NaN where no pixel has a label; None
        without label maps."""
        return ClassCounts.stacked(self._before).pixel_accuracy if self._before else None

    @property
    def most_frequent(self) -> float:
        """Percent of the labelled pixels that one class has."""
        true = ClassCounts.stacked(self._before).total().true
        return 100.0 * int(true.max()) / max(1, int(true.sum()))

    @property
    def drop(self) -> float | None:
        """Points of mIoU; None without labels."""
        if not self._before:
            return None
        return ClassCounts.stacked(self._before).miou - ClassCounts.stacked(self._after).miou
