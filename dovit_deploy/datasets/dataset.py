"""Labelled images in files: decoded when asked for, every fault named with its file.

What differs between data sets is where the files lie (the layouts) and what the numbers in label maps mean (`Codes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.errors import DatasetError

IGNORE = 255
"""Pixel value of labels that count nowhere, whatever the files call it."""


@dataclass(frozen=True)
class ClassList:
    """Names and colours of the classes 0..K-1, and which id in the files means "no class"."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int | None


@dataclass(frozen=True)
class Sample:
    """One labelled image: `rgb` (H, W, 3) uint8, `label` (H, W) uint8 with `IGNORE` where nothing is known."""

    stem: str
    rgb: NDArray[np.uint8]
    label: NDArray[np.uint8]


class Dataset(Protocol):
    """One split: so many samples, each decoded (or rendered) when asked for."""

    classes: ClassList
    name: str
    """Where it comes from and which split, for messages."""

    @property
    def stems(self) -> tuple[str, ...]:
        """A name for each sample; neighbours of one drive start alike."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Number `index`; raises DatasetError naming the file when it cannot be used."""

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of number `index` alone: (H, W) uint8, `IGNORE` where nothing is known."""

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of each class, (K,)."""

    def check(self) -> None:
        """Raise DatasetError naming the first file with a fault: before an hour of work, not after it."""


@dataclass(frozen=True)
class LabelledFile:
    """An image and its label map, on the disk."""

    stem: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Codes:
    """What each pixel value of a label file stands for."""

    table: NDArray[np.uint8]
    """(256,): class id, or `IGNORE`."""
    known: NDArray[np.bool_]
    """(256,): the value may occur."""
    allowed: str
    """Which values may occur, in words."""


def plain_codes(classes: int, ignore: int | None) -> Codes:
    """Pixel value = class id; `ignore`, and 255, count nowhere."""
    table = np.full(256, IGNORE, np.uint8)
    table[:classes] = np.arange(classes)
    known = np.zeros(256, bool)
    known[:classes] = known[IGNORE] = True
    if ignore is not None and 0 <= ignore <= 255:
        table[ignore], known[ignore] = IGNORE, True
    return Codes(table, known, f"class ids are 0..{classes - 1}")


class LabelledFiles:
    """A `Dataset` of files.

    Raises:
        DatasetError: there is none.
    """

    def __init__(self, name: str, files: Sequence[LabelledFile], classes: ClassList, codes: Codes) -> None:
        if not files:
            raise DatasetError(f"{name}: no labelled image")
        self.name, self.classes = name, classes
        self.files, self.codes = tuple(files), codes

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the images without suffix."""
        return tuple(file.stem for file in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        """Decode number `index`; raises DatasetError naming the file when it cannot be used."""
        file = self.files[index]
        rgb, label = decoded(file.image, mode="RGB"), self.label(index)
        if rgb.shape[:2] != label.shape:
            raise DatasetError(
                f"{file.label}: {label.shape[1]}x{label.shape[0]} pixels, its image has {rgb.shape[1]}x{rgb.shape[0]}"
            )
        return Sample(file.stem, rgb, label)

    def label(self, index: int) -> NDArray[np.uint8]:
        """Label map number `index`, (H, W) uint8, `IGNORE` where nothing is known."""
        path = self.files[index].label
        values = decoded(path, mode=None)
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        wrong = present[~self.codes.known[present]]
        if wrong.size:
            raise DatasetError(f"{path}: pixel value {wrong[0]}; {self.codes.allowed}")
        return self.codes.table[values]

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of each class, (K,); reads every label once."""
        return frequencies(self)

    def check(self) -> None:
        """Decode every image and label once; raises DatasetError naming the first that cannot be used."""
        for index in range(len(self)):
            self.sample(index)


def frequencies(data: Dataset) -> NDArray[np.float64]:
    """Share of the labelled pixels of each class, (K,), over all of `data`.

    Raises:
        DatasetError: no pixel is labelled.
    """
    count = np.zeros(256, np.int64)
    for index in range(len(data)):
        count += np.bincount(data.label(index).ravel(), minlength=256)
    known = count[: len(data.classes.names)].astype(np.float64)
    if not known.sum():
        raise DatasetError(f"{data.name}: no labelled pixel in the whole split")
    shares: NDArray[np.float64] = known / known.sum()
    return shares


def decoded(path: Path, *, mode: str | None) -> NDArray[np.uint8]:
    """Pixels of an image, converted to `mode`; without one it must be 8-bit grey or indexed, values as stored."""
    image = packages.pillow()
    try:
        with image.open(path) as opened:
            if mode is None and opened.mode not in ("L", "P"):
                raise DatasetError(f"{path}: a label must be an 8-bit grey or indexed PNG, this is {opened.mode}")
            return np.array(opened if mode is None else opened.convert(mode), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be decoded ({error})") from error


def listed(folder: Path) -> list[Path]:
    """The files of `folder`, sorted; hidden ones are not part of a data set."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: no such folder, or it cannot be read ({error.strerror})") from error


def by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their names without suffix; raises DatasetError for two of one stem."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise DatasetError(f"{path}: {files[path.stem].name} has the same stem; keep one of them")
        files[path.stem] = path
    return files


def paired(images: Sequence[Path], labels: Sequence[Path]) -> list[LabelledFile]:
    """Images and labels of the same stems; raises DatasetError naming a file that has no partner."""
    image_of, label_of = by_stem(images), by_stem(labels)
    for stem in sorted(image_of.keys() ^ label_of.keys()):
        path, missing = (image_of[stem], "label") if stem in image_of else (label_of[stem], "image")
        raise DatasetError(f"{path}: there is no {missing} named '{stem}'")
    return [LabelledFile(stem, image_of[stem], label_of[stem]) for stem in sorted(image_of)]


def lines_of(path: Path) -> list[str]:
    """The lines of a list that are not blank; raises DatasetError when it cannot be read or has none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise DatasetError(f"{path}: lists no image")
    return lines


# Some samples of a data set as a data set: one drive alone, all but one drive, every tenth image.


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
