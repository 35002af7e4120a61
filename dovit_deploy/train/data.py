"""What does a run learn from, and what is it validated on? A data set, rendered scenes, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.dataset import Dataset, Sample
from dovit_deploy.datasets.open import dataset_from_path, has_split, is_rendered
from dovit_deploy.datasets.recording import Moment
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.datasets.summary import DataSummary, summary_of
from dovit_deploy.errors import DatasetError
from dovit_deploy.files import file_written_aside, optional_writes
from dovit_deploy.record import Record
from dovit_deploy.train.recipe import Recipe
from dovit_scenes.render import SMALLEST
from dovit_scenes.things import CLASS_NAMES

UNLIMITED = 2**31
"""Every scene is a new one."""
COUNTED = 12
"""Scenes that class frequencies are estimated on."""
VALIDATION_SCENES = 16
"""Scenes that a run on scenes alone is validated on."""
DEFAULT_SIZE = (360, 480)
"""Of rendered scenes when nothing says another."""
SCENE_FOLDER = "scenes"
"""In the run's folder, when a limited number of scenes is kept."""


class DataFound(Record):
    """What was found in the images of a run when they were opened; null where there are none."""

    training: DataSummary | None
    validation: DataSummary | None

    def lines(self) -> list[str]:
        """For people."""
        lines = [] if self.training is None else self.training.lines()
        if self.validation is None:
            return [*lines, "no validation split: no threshold will be measured"]
        # Both splits are written alike, so one doubt is enough.
        return lines + self.validation.lines()[: 1 if len(lines) > 1 else None]


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from; either may be absent."""

    data: Dataset | None
    scenes: Dataset | None

    @property
    def main(self) -> Dataset:
        """Whose classes and frequencies count."""
        main = self.data if self.data is not None else self.scenes
        if main is None:
            raise ValueError("nothing to train on")
        return main

    @property
    def images(self) -> int:
        """How many images the data set has; 0: scenes alone."""
        return 0 if self.data is None else len(self.data)

    def frequencies(self) -> tuple[float, ...]:
        """Share of each class among the labelled pixels; of scenes an estimate in which none is 0."""
        if self.data is not None:
            return tuple(self.data.class_frequencies().tolist())
        # From one pixel each: a class that these few scenes do not show still needs a weight.
        count = np.ones(len(self.main.classes.names))
        for index in range(min(COUNTED, len(self.main))):
            count += np.bincount(self.main.label(index).ravel(), minlength=256)[: len(count)]
        return tuple((count / count.sum()).tolist())

    def image(self, number: int) -> Sample:
        """Image `number` of the data set."""
        if self.data is None:
            raise ValueError("a batch of a data set that is not there")
        return self.data.sample(number)

    def scene(self, number: int) -> Sample:
        """Scene `number`, counted from the first again when there are fewer."""
        if self.scenes is None:
            raise ValueError("a batch of scenes that are not there")
        return self.scenes.sample(number % len(self.scenes))


def training_images(dataset: str, recipe: Recipe, classes: Path | None = None) -> Dataset | None:
    """The images to train on, None for rendered scenes; DatasetError when they are not there.

    `classes`: a list of the data set's own classes.
    """
    return None if is_rendered(dataset) else dataset_from_path(dataset, recipe.split, classes=classes)


def validation_data(
    dataset: str, recipe: Recipe, size: tuple[int, int], classes: Path | None = None, *, resumed: bool = False
) -> Dataset | None:
    """The validation images; None where the default split is not there.

    `resumed`: the recipe is of a run's record, which holds every key, whether or not the user wrote it.

    Raises:
        DatasetError: a split that the recipe names is not there, or is faulty.
    """
    if is_rendered(dataset):
        # A run that keeps few scenes is a small one.
        return CachedInMemory(
            RenderedScenes(
                "val", size=_renderable(size), count=min(VALIDATION_SCENES, recipe.scenes or VALIDATION_SCENES)
            )
        )
    stated = recipe.watch != Recipe().watch if resumed else "watch" in recipe.model_fields_set
    try:
        return dataset_from_path(dataset, recipe.watch, classes=classes)
    except DatasetError:
        # A data set need not have a validation split, but what is there must be right.
        if stated or has_split(dataset, recipe.watch):
            raise
        return None


def found_in(data: Dataset | None, validation: Dataset | None) -> DataFound:
    """Look into what a run learns from and is validated on; DatasetError where a label cannot be used."""
    return DataFound(
        training=None if data is None else summary_of(data),
        validation=None if validation is None else summary_of(validation),
    )


def scenes_for(recipe: Recipe, size: tuple[int, int], folder: Path | None) -> Dataset:
    """Scenes to train on; a limited number of them is kept under `folder`."""
    scenes = RenderedScenes(
        f"train {recipe.seed}", size=_renderable(size), count=recipe.scenes or UNLIMITED, fullness=recipe.fullness
    )
    return CachedInFolder(scenes, folder / SCENE_FOLDER) if recipe.scenes and folder is not None else scenes


def _renderable(size: tuple[int, int]) -> tuple[int, int]:
    """`size`, enlarged to what can be rendered; augmentation resizes anyhow."""
    return max(SMALLEST, size[0]), max(SMALLEST, size[1])


def refuse_other_classes(data: Dataset) -> None:
    """Raise DatasetError unless `data` has the classes of the rendered scenes, in their order."""
    if tuple(name.lower() for name in data.classes.names) != CLASS_NAMES:
        raise DatasetError(
            f"{data.name}: rendered scenes have the classes {', '.join(CLASS_NAMES)}; "
            f"this data set has {', '.join(data.classes.names[:12])}, so they cannot be mixed"
        )


class CachedInMemory(Dataset):
    """A data set whose samples stay in memory once they were asked for: validation sees them again and again."""

    def __init__(self, whole: Dataset) -> None:
        self.whole, self.classes, self.name = whole, whole.classes, whole.name
        self._samples: dict[int, Sample] = {}

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the samples."""
        return self.whole.stems

    @property
    def moments(self) -> tuple[Moment, ...] | None:
        return self.whole.moments

    def __len__(self) -> int:
        return len(self.whole)

    def sample(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self.whole.sample(index)
        return self._samples[index]

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of number `index`."""
        return self.sample(index).label

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of each class, (K,)."""
        return self.whole.class_frequencies()

    def check(self) -> None:
        """Read every sample once; raises DatasetError for the first faulty one."""
        self.whole.check()


class CachedInFolder(CachedInMemory):
    """A data set whose samples are written to `folder` once they were rendered, which takes a few tenths of a second.

    Several processes may share the folder.
    """

    def __init__(self, whole: Dataset, folder: Path) -> None:
        super().__init__(whole)
        self.folder = folder

    def sample(self, index: int) -> Sample:
        """Number `index`; raises DatasetError when it cannot be read; it need not be possible to write it."""
        path = self.folder / f"{index:06d}.npz"
        if path.is_file():
            return _read(path)
        sample = self.whole.sample(index)
        with optional_writes("rendered scenes are not kept, and rendered again where they are needed again"):
            _write(path, sample)
        return sample


def _write(path: Path, sample: Sample) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed at the end: another process may be writing the same sample.
    with file_written_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, stem=np.array(sample.stem), rgb=sample.rgb, label=sample.label)


def _read(path: Path) -> Sample:
    try:
        with np.load(path) as stored:
            return Sample(str(stored["stem"]), stored["rgb"], stored["label"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); remove it, and it is rendered again") from error
