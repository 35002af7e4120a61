"""Samples kept once they were rendered or decoded: in a folder for training, in memory for looking at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.datasets import Dataset, Sample


class KeptInMemory:
    """A data set whose samples stay in memory once they were asked for."""

    def __init__(self, whole: Dataset) -> None:
        self.whole, self.classes, self.name = whole, whole.classes, whole.name
        self._samples: dict[int, Sample] = {}

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the samples."""
        return self.whole.stems

    def __len__(self) -> int:
        return len(self.whole)

    def sample(self, index: int) -> Sample:
        """Number `index`."""
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
        """As the data set itself."""
        self.whole.check()


class KeptInFolder(KeptInMemory):
    """A data set whose samples are written to `folder` once they were rendered, which takes a few tenths of a second.

    Several processes may share the folder.
    """

    def __init__(self, whole: Dataset, folder: Path) -> None:
        super().__init__(whole)
        self.folder = folder

    def sample(self, index: int) -> Sample:
        """Number `index`; raises DatasetError when it cannot be written or read."""
        path = self.folder / f"{index:06d}.npz"
        if path.is_file():
            return _read(path)
        sample = self.whole.sample(index)
        _write(path, sample)
        return sample


def _write(path: Path, sample: Sample) -> None:
    """Write aside and rename: another process may be at the same sample."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez_compressed(file, stem=np.array(sample.stem), rgb=sample.rgb, label=sample.label)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DatasetError(f"{path}: a rendered scene cannot be kept ({error.strerror}); make room") from error


def _read(path: Path) -> Sample:
    try:
        with np.load(path) as stored:
            return Sample(str(stored["stem"]), stored["rgb"], stored["label"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); remove it, and it is rendered again") from error
