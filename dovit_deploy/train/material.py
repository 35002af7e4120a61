"""What a run learns from and what it is looked at on: a data set, rendered scenes, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.datasets import SCENES, Dataset, RenderedScenes, Sample, dataset_from_path
from dovit_deploy.scenes.classes import CLASS_NAMES
from dovit_deploy.scenes.render import SMALLEST
from dovit_deploy.train.kept import KeptInFolder, KeptInMemory
from dovit_deploy.train.recipe import Recipe

RENDERED = ("rendered", SCENES)
"""Words in place of a data set's folder."""
UNLIMITED = 2**31
COUNTED = 12
"""Scenes whose pixels tell how frequent the classes are."""
WATCHED = 16
"""Scenes that a run on scenes alone is looked at on."""
DEFAULT_SIZE = (360, 480)
"""Of rendered scenes when nothing says another."""
SCENE_FOLDER = "scenes"
"""In the run's folder, when a limited number of scenes is kept."""


@dataclass(frozen=True)
class Material:
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
        count = np.ones(len(self.main.classes.names))
        for index in range(min(COUNTED, len(self.main))):
            count += np.bincount(self.main.label(index).ravel(), minlength=256)[: len(count)]
        return tuple((count / count.sum()).tolist())

    def picture(self, number: int) -> Sample:
        """Image `number` of the data set."""
        if self.data is None:
            raise ValueError("a batch of a data set that is not there")
        return self.data.sample(number)

    def scene(self, number: int) -> Sample:
        """Scene `number`, counted from the first again when there are fewer."""
        if self.scenes is None:
            raise ValueError("a batch of scenes that are not there")
        return self.scenes.sample(number % len(self.scenes))


def opened(dataset: str, recipe: Recipe) -> Dataset | None:
    """The images to train on, None for rendered scenes; DatasetError when they are not there."""
    return None if is_rendered(dataset) else dataset_from_path(dataset, recipe.split)


def watched(dataset: str, recipe: Recipe, size: tuple[int, int]) -> Dataset | None:
    """The images to look at; None where the default split is not there.

    Raises:
        DatasetError: a split that the recipe names is not there, or is faulty.
    """
    if is_rendered(dataset):
        # A run that keeps few scenes is a small one.
        return KeptInMemory(RenderedScenes("val", size=_renderable(size), count=min(WATCHED, recipe.scenes or WATCHED)))
    stated = "watch" in recipe.model_fields_set
    try:
        return dataset_from_path(dataset, recipe.watch)
    except DatasetError:
        # A data set need not have a validation split, but what is there must be right.
        if stated or has_split(Path(dataset), recipe.watch):
            raise
        return None


def has_split(root: Path, split: str) -> bool:
    """Something under `root` is called after the split."""
    name = split.partition(":")[0]
    return (root / f"{name}.txt").exists() or any((root / kind / name).exists() for kind in ("images", "labels"))


def is_rendered(dataset: str) -> bool:
    """`dataset` is the word for rendered scenes and no folder."""
    return dataset in RENDERED and not Path(dataset).exists()


def scenes_for(recipe: Recipe, size: tuple[int, int], folder: Path | None) -> Dataset:
    """Scenes to train on; a limited number of them is kept under `folder`."""
    scenes = RenderedScenes(
        f"train {recipe.seed}", size=_renderable(size), count=recipe.scenes or UNLIMITED, fullness=recipe.fullness
    )
    return KeptInFolder(scenes, folder / SCENE_FOLDER) if recipe.scenes and folder is not None else scenes


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
