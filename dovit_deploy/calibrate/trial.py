"""Really running settings on the deployed bundle: every image once, all settings of a batch interleaved on it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.calibrate.images import CalibrationImage, CalibrationImages
from dovit_deploy.calibrate.predicted import Recording, RecordingSession
from dovit_deploy.calibrate.units import mean_of_units
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.progress import StepProgress
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings

Value = TypeVar("Value")


@dataclass
class DensePart:
    """What the dense model answers on the images of a part."""

    indices: tuple[int, ...]
    """Of the images among all."""
    blocks: Blocks
    units: Blocks
    """What of them is independent of what."""
    counts: list[ClassCounts] = field(default_factory=list)
    """(K,) of each image; empty without labels."""
    answers: list[bytes] = field(default_factory=list, repr=False)
    """Class maps, compressed: a set of large images would not fit into memory otherwise."""


@dataclass
class Trial:
    """One setting on all images of a part, image by image."""

    thresholds: tuple[float, ...]
    units: Blocks
    """Of the images."""
    counts: list[ClassCounts] = field(default_factory=list)
    """(K,) of each image; empty without labels."""
    differing: list[float] = field(default_factory=list)
    """Share of each image's pixels whose class is not the dense answer's."""
    kept: list[tuple[int, ...]] = field(default_factory=list)
    windows: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    """Of each image, what `kept` is the sum of."""
    gmacs: list[float] = field(default_factory=list)
    gmacs_dense: list[float] = field(default_factory=list)
    model_ms: list[float] = field(default_factory=list)
    """Of every run, so more than one entry an image where runs were repeated."""

    @property
    def flops_saved(self) -> float:
        """1 - actual / dense over all images."""
        return 1.0 - sum(self.gmacs) / sum(self.gmacs_dense)

    @property
    def mean_differing(self) -> float:
        """Mean over the images of the share of differing pixels."""
        return float(np.mean(self.differing))

    @property
    def losses(self) -> NDArray[np.float64]:
        """(units,): the same over the images of each unit."""
        return mean_of_units(self.differing, self.units)


class Runner:
    """A session and images; counts its passes over a part.

    Args:
        session: of the deployed bundle.
        images: all of them.
        units: which of them are independent of which; None: each of all others.
        repeat: runs of each setting on each image; more than one where the time is judged.
        progress: advanced after every image.
    """

    def __init__(
        self,
        session: Session,
        images: CalibrationImages,
        *,
        repeat: int,
        progress: StepProgress,
        units: Blocks | None = None,
    ) -> None:
        self.images, self.repeat, self.progress = images, repeat, progress
        self.units = blocks_of(len(images.stems), None) if units is None else units
        self.session, self.manifest = session, session.bundle.manifest
        self.predictor = Predictor(session)
        self.passes = 0

    def record(self, indices: Sequence[int], blocks: Blocks) -> tuple[DensePart, Recording]:
        """The recording pass: the dense answers of these images, and what the gates find of every token."""
        recorder = RecordingSession(self.session)
        return self._dense(Predictor(recorder), indices, blocks), recorder.recording

    def dense(self, indices: Sequence[int], blocks: Blocks) -> DensePart:
        """The dense answers of these images."""
        return self._dense(self.predictor, indices, blocks)

    def run(self, part: DensePart, thresholds: Sequence[tuple[float, ...]]) -> list[Trial]:
        """Run every setting on every image of `part`; the order of the settings changes from run to run."""
        trials = [Trial(values, part.units) for values in thresholds]
        settings = [RunSettings.resolve(self.manifest, thresholds=values) for values in thresholds]
        self.passes += len(trials)
        for position, index in enumerate(part.indices):
            image, answer = self.images.image(index), part.answers[position]
            for turn in range(self.repeat):
                for step in range(len(trials)):
                    # So that no setting always runs first, on cold caches, or last.
                    number = (step + position + turn) % len(trials)
                    self._run_one(trials[number], settings[number], image, answer, first=turn == 0)
            self.progress.advance()
        return trials

    def _run_one(
        self, trial: Trial, settings: RunSettings, image: CalibrationImage, dense: bytes, *, first: bool
    ) -> None:
        result = self.predictor.run(image.rgb, settings)
        trial.model_ms.append(result.timing.model)
        if not first:
            # Only the time differs from run to run.
            return
        trial.kept.append(result.tokens.kept)
        trial.windows.append(tuple(window.report.kept for window in result.tokens.windows))
        trial.gmacs.append(result.tokens.gmacs_actual)
        trial.gmacs_dense.append(result.tokens.gmacs_dense)
        trial.differing.append(float(np.mean(result.class_map != _unpacked(dense, result.class_map.shape))))
        if image.label is not None:
            trial.counts.append(self._counts(image.label, result.class_map))

    def _dense(self, predictor: Predictor, indices: Sequence[int], blocks: Blocks) -> DensePart:
        part = DensePart(tuple(indices), blocks, self.units.of(indices))
        settings = RunSettings.resolve(self.manifest, dense=True)
        self.passes += 1
        for index in indices:
            image = self.images.image(index)
            class_map = predictor.run(image.rgb, settings).class_map
            # Level 1 is fast, and the long runs of a class map compress well at any level.
            part.answers.append(zlib.compress(class_map.tobytes(), 1))
            if image.label is not None:
                part.counts.append(self._counts(image.label, class_map))
            self.progress.advance()
        return part

    def _counts(self, label: ClassMap, class_map: ClassMap) -> ClassCounts:
        return ClassCounts.of(label, class_map, classes=self.manifest.spec.classes)


def joined_parts(first: DensePart, second: DensePart, blocks: Blocks, units: Blocks) -> DensePart:
    """Both parts in the order of the images, without their answers; `blocks`, `units`: of all images."""
    # `blocks` numbers the images of both parts in their common order; counts must follow it.
    order = _order(first, second)
    joined = DensePart(tuple(sorted((*first.indices, *second.indices))), blocks, units)
    if first.counts:
        joined.counts.extend(_picked(first.counts, second.counts, order))
    return joined


def joined_trials(first: Trial, first_part: DensePart, second: Trial, second_part: DensePart, units: Blocks) -> Trial:
    """One setting on both parts, in the order of the images; `units`: of all images."""
    order = _order(first_part, second_part)
    return Trial(
        first.thresholds,
        units,
        counts=_picked(first.counts, second.counts, order) if first.counts else [],
        differing=_picked(first.differing, second.differing, order),
        kept=_picked(first.kept, second.kept, order),
        windows=_picked(first.windows, second.windows, order),
        gmacs=_picked(first.gmacs, second.gmacs, order),
        gmacs_dense=_picked(first.gmacs_dense, second.gmacs_dense, order),
        # Only the median of the times is used, so their order does not matter.
        model_ms=[*first.model_ms, *second.model_ms],
    )


def _order(first: DensePart, second: DensePart) -> list[int]:
    indices = (*first.indices, *second.indices)
    return sorted(range(len(indices)), key=indices.__getitem__)


def _picked(first: list[Value], second: list[Value], order: Sequence[int]) -> list[Value]:
    both = [*first, *second]
    return [both[position] for position in order]


def _unpacked(answer: bytes, shape: tuple[int, ...]) -> ClassMap:
    return np.frombuffer(zlib.decompress(answer), dtype=np.uint8).reshape(shape)
