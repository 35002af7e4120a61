"""Some samples of a data set as a data set: one drive alone, all but one drive, every tenth image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.labelled_files import Dataset, Sample, frequencies


class DatasetPart:
    """The samples of `whole` numbered in `indices`, in that order.

    Raises:
        DatasetError: `indices` is empty.
    """

    def __init__(self, whole: Dataset, indices: Sequence[int], *, name: str | None = None) -> None:
        self.whole, self.indices = whole, tuple(indices)
        self.name = whole.name if name is None else name
        if not self.indices:
            raise DatasetError(f"{self.name}: no image")
        self.classes = whole.classes

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the part's samples."""
        names = self.whole.stems
        return tuple(names[index] for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> Sample:
        """Number `index` of the part; raises DatasetError naming the file when it cannot be used."""
        return self.whole.sample(self.indices[index])

    def label(self, index: int) -> NDArray[np.uint8]:
        """Label map number `index` of the part, (H, W) uint8."""
        return self.whole.label(self.indices[index])

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the part's labelled pixels of each class, (K,); reads every label once."""
        return frequencies(self)

    def check(self) -> None:
        """Decode every image and label of the part once; raises DatasetError naming the first with a fault."""
        for index in range(len(self)):
            self.sample(index)


def with_prefix(whole: Dataset, prefix: str, *, without: bool = False) -> DatasetPart:
    """The images whose stem starts with `prefix` (a drive of CamVid, a city), or `without` them.

    Raises:
        DatasetError: none is left.
    """
    indices = [number for number, stem in enumerate(whole.stems) if stem.startswith(prefix) != without]
    kind = "all start" if without else "none starts"
    if not indices:
        raise DatasetError(f"{whole.name}: of its {len(whole)} images {kind} with '{prefix}'")
    return DatasetPart(whole, indices, name=f"{whole.name}, {'without' if without else 'only'} {prefix}")
