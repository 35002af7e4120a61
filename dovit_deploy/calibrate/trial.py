"""Really running settings on the deployed bundle: every image once, all settings of a batch interleaved on it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dovit_deploy.calibrate.predicted import Recording, RecordingSession, recorded_answer
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.intervals import Blocks
from dovit_deploy.measure.metrics import ClassCounts
from dovit_deploy.runtime.segmentation import Predictor
from dovit_deploy.runtime.session import Session
from dovit_deploy.sources.images import is_image, read_image
from dovit_deploy.sources.source import RGB

# Pictures to calibrate on: a data set with its labels, or a folder of images without any.


@dataclass(frozen=True)
class Picture:
    """One picture: `rgb` (H, W, 3) uint8, `label` (H, W) uint8 with 255 where nothing is known, or None."""

    rgb: RGB
    label: npt.NDArray[np.uint8] | None


class Pictures(Protocol):
    """So many pictures, in an order in which neighbours are alike."""

    name: str
    stems: tuple[str, ...]
    labelled: bool

    @property
    def split(self) -> str | None:
        """Which part of the data set; None for a folder."""

    def picture(self, index: int) -> Picture:
        """Decode number `index`; raises InputError naming the file when it cannot be used."""


class LabelledPictures:
    """The images of a data set's split with their labels."""

    labelled = True

    def __init__(self, data: Dataset, *, name: str, split: str) -> None:
        self.data, self.name, self.split = data, name, split
        self.stems = tuple(data.stems)

    def picture(self, index: int) -> Picture:
        """Decode number `index`."""
        sample = self.data.sample(index)
        return Picture(sample.rgb, sample.label)


class FolderPictures:
    """The images of a folder, in the order of their names.

    Raises:
        DatasetError: there is no such folder, or no image in it.
    """

    labelled = False
    split = None

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.paths = image_files(folder)
        if not self.paths:
            raise DatasetError(f"{folder}: no image in it")
        self.stems = tuple(path.name for path in self.paths)

    def picture(self, index: int) -> Picture:
        """Decode number `index`."""
        return Picture(read_image(self.paths[index]), None)


def image_files(folder: Path) -> Sequence[Path]:
    """The images that lie directly in `folder`, sorted; none where there is no such folder."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)]
    except OSError:
        return []


Value = TypeVar("Value")
ClassMap = npt.NDArray[np.uint8]
Advance = Callable[[], None]
"""Told after every picture."""


@dataclass
class Trial:
    """One setting on all images of a part, image by image."""

    thresholds: tuple[float, ...]
    counts: list[ClassCounts] = field(default_factory=list)
    """(K,) of each image; empty without labels."""
    differing: list[float] = field(default_factory=list)
    """Share of each image's pixels whose class is not the dense answer's."""
    kept: list[tuple[int, ...]] = field(default_factory=list)
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


@dataclass
class DensePart:
    """What the dense model answers on the images of a part."""

    indices: tuple[int, ...]
    """Of the pictures."""
    blocks: Blocks
    counts: list[ClassCounts] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list, repr=False)
    """Class maps, compressed: a set of large images would not fit otherwise."""


class Runner:
    """A session and pictures; counts its passes over a part.

    Args:
        session: of the deployed bundle.
        pictures: all of them.
        repeat: runs of each setting on each image; more than one where the time is judged.
        advance: told after every picture.
    """

    def __init__(self, session: Session, pictures: Pictures, *, repeat: int, advance: Advance) -> None:
        self.session, self.pictures = session, pictures
        self.predictor = Predictor(session)
        self.repeat, self.advance = repeat, advance
        self.classes = session.bundle.manifest.spec.classes
        self.passes = 0

    def record(self, indices: Sequence[int], blocks: Blocks) -> tuple[DensePart, Recording]:
        """The recording pass: the dense answers of these pictures, and what the gates say."""
        recorder = RecordingSession(self.session)
        part = self._dense(indices, blocks, lambda picture: recorded_answer(recorder, picture.rgb))
        return part, recorder.recording

    def dense(self, indices: Sequence[int], blocks: Blocks) -> DensePart:
        """The dense answers of these pictures."""
        return self._dense(indices, blocks, lambda picture: self.predictor.predict(picture.rgb, dense=True).class_map)

    def run(self, part: DensePart, settings: Sequence[tuple[float, ...]]) -> list[Trial]:
        """Run every setting on every image of `part`; the order of the settings changes from run to run."""
        trials = [Trial(setting) for setting in settings]
        self.passes += len(trials)
        for place, index in enumerate(part.indices):
            picture = self.pictures.picture(index)
            for turn in range(self.repeat):
                for step in range(len(trials)):
                    trial = trials[(step + place + turn) % len(trials)]
                    self._run_one(trial, picture, part.answers[place], first=turn == 0)
            self.advance()
        return trials

    def _run_one(self, trial: Trial, picture: Picture, dense: bytes, *, first: bool) -> None:
        result = self.predictor.predict(picture.rgb, thresholds=trial.thresholds)
        trial.model_ms.append(result.timing.model)
        if not first:
            return
        trial.kept.append(result.tokens.kept)
        trial.gmacs.append(result.tokens.gmacs_actual)
        trial.gmacs_dense.append(result.tokens.gmacs_dense)
        trial.differing.append(float(np.mean(result.class_map != _unpacked(dense, result.class_map.shape))))
        if picture.label is not None:
            trial.counts.append(self._counts(picture.label, result.class_map))

    def _counts(self, label: ClassMap, class_map: ClassMap) -> ClassCounts:
        return ClassCounts.of(label, class_map, classes=self.classes)

    def _dense(self, indices: Sequence[int], blocks: Blocks, answer: Callable[[Picture], ClassMap]) -> DensePart:
        part = DensePart(tuple(indices), blocks)
        self.passes += 1
        for index in indices:
            picture = self.pictures.picture(index)
            class_map = answer(picture)
            part.answers.append(zlib.compress(class_map.tobytes(), 1))
            if picture.label is not None:
                part.counts.append(self._counts(picture.label, class_map))
            self.advance()
        return part


def joined_parts(first: DensePart, second: DensePart, blocks: Blocks) -> DensePart:
    """Both parts in the order of the pictures, without their answers; `blocks`: of all pictures."""
    order = _order(first, second)
    joined = DensePart(tuple(sorted((*first.indices, *second.indices))), blocks)
    if first.counts:
        joined.counts.extend(_picked(first.counts, second.counts, order))
    return joined


def joined_trials(first: Trial, first_part: DensePart, second: Trial, second_part: DensePart) -> Trial:
    """One setting on both parts, in the order of the pictures."""
    order = _order(first_part, second_part)
    return Trial(
        first.thresholds,
        counts=_picked(first.counts, second.counts, order) if first.counts else [],
        differing=_picked(first.differing, second.differing, order),
        kept=_picked(first.kept, second.kept, order),
        gmacs=_picked(first.gmacs, second.gmacs, order),
        gmacs_dense=_picked(first.gmacs_dense, second.gmacs_dense, order),
        model_ms=[*first.model_ms, *second.model_ms],
    )


def _order(first: DensePart, second: DensePart) -> list[int]:
    indices = (*first.indices, *second.indices)
    return sorted(range(len(indices)), key=indices.__getitem__)


def _picked(first: list[Value], second: list[Value], order: Sequence[int]) -> list[Value]:
    both = [*first, *second]
    return [both[place] for place in order]


def _unpacked(answer: bytes, shape: tuple[int, ...]) -> ClassMap:
    return np.frombuffer(zlib.decompress(answer), dtype=np.uint8).reshape(shape)
