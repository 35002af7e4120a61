"""Pictures to calibrate on: a data set with its labels, or a folder of images without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.datasets import Dataset
from dovit_deploy.runtime.images import is_image, read_image
from dovit_deploy.runtime.results import RGB


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
