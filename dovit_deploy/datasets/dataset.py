"""What is a data set of label maps, how are its files decoded, and what is a part of one?

Samples are decoded when asked for, and every fault names its file. What differs between data sets is where the files
are (`layouts`) and what the numbers in label maps mean (`LabelCodes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.label_values import stored_values
from dovit_deploy.datasets.recording import Moment, RecordingRate, moments_from_stems
from dovit_deploy.datasets.split import Split
from dovit_deploy.errors import DatasetError, SourceError
from dovit_deploy.sources.images import opened_image, read_image

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
    """An image and its label map."""

    stem: str
    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    label: NDArray[np.uint8]
    """(H, W); `IGNORE` where nothing is known."""


class Dataset(Protocol):
    """One split: so many samples, each decoded (or rendered) when asked for."""

    classes: ClassList
    name: str
    """Where it comes from and which split, for messages."""

    @property
    def stems(self) -> tuple[str, ...]:
        """A name for each sample; neighbours of one drive start alike."""

    @property
    def moments(self) -> tuple[Moment, ...] | None:
        """When each sample was recorded; None for samples that are independent of each other."""
        return None

    @property
    def recording_rate(self) -> RecordingRate | None:
        """What the data set says of that; None: nothing."""
        return None

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample number `index`; raises DatasetError naming the file when it cannot be used."""

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of sample `index` alone: (H, W) uint8, `IGNORE` where nothing is known."""

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of each class, (K,); reads every label map once.

        Raises:
            DatasetError: no pixel is labelled.
        """
        # 256 bins hold every pixel value, IGNORE too, which is cut off with all that are no class.
        count = np.zeros(256, np.int64)
        for index in range(len(self)):
            count += np.bincount(self.label(index).ravel(), minlength=256)
        labelled = count[: len(self.classes.names)].astype(np.float64)
        if not labelled.sum():
            raise DatasetError(f"{self.name}: no labelled pixel in the whole split")
        shares: NDArray[np.float64] = labelled / labelled.sum()
        return shares

    def check(self) -> None:
        """Decode everything once, so that a fault shows before an hour of work; raises DatasetError for the first."""
        for index in range(len(self)):
            self.sample(index)


@dataclass(frozen=True)
class LabelCodes:
    """What each pixel value of a label file stands for."""

    table: NDArray[np.uint8]
    """(256,): class id, or `IGNORE`."""
    known: NDArray[np.bool_]
    """(256,): whether the value may occur."""
    allowed: str
    """Which values may occur, for messages."""


def plain_codes(classes: int, ignore: int | None, *, first: int = 0) -> LabelCodes:
    """Pixel value - `first` = class id; `ignore`, and 255, count nowhere."""
    table = np.full(256, IGNORE, np.uint8)
    table[first : first + classes] = np.arange(classes)
    # 255 is void by convention, and allowed in every file, whatever its class list calls void.
    known = np.zeros(256, bool)
    known[first : first + classes] = known[IGNORE] = True
    if ignore is not None and 0 <= ignore <= 255:
        table[ignore], known[ignore] = IGNORE, True
    return LabelCodes(table, known, f"class ids are {first}..{first + classes - 1}")


@dataclass(frozen=True)
class Labelling:
    """What the numbers in the label maps of a data set mean."""

    classes: ClassList
    codes: LabelCodes
    source: Path | None = None
    """The list of the data set's own classes; None: those of its layout."""
    frame_rate: RecordingRate | None = None
    """As the list or the layout states it; None: unknown."""


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode an image of a data set: (H, W, 3) uint8; raises DatasetError naming the file."""
    try:
        return read_image(path)
    except SourceError as error:
        raise DatasetError(str(error)) from error


def read_label(path: Path, codes: LabelCodes) -> NDArray[np.uint8]:
    """Decode a label map: (H, W) uint8, class ids and `IGNORE`.

    Raises:
        DatasetError: not a grey or indexed image that keeps its values, or a pixel value that stands for nothing.
    """
    label: NDArray[np.uint8] = codes.table[_known_values(path, codes)]
    return label


def _known_values(path: Path, codes: LabelCodes) -> NDArray[Any]:
    """The numbers in a label file, (H, W), each of them known; raises DatasetError as `read_label`."""
    try:
        values = stored_values(path)
    except SourceError as error:
        raise DatasetError(str(error)) from error
    unknown = _unknown_value(values, codes)
    if unknown is not None:
        raise DatasetError(f"{path}: pixel value {unknown}; {codes.allowed}")
    return values


def _unknown_value(values: NDArray[Any], codes: LabelCodes) -> int | None:
    """The smallest pixel value that stands for nothing; None where all are known."""
    if values.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    else:
        present = np.unique(values)
    known = (present >= 0) & (present < 256)
    known[known] = codes.known[present[known]]
    return None if known.all() else int(present[~known][0])


def _turned(path: Path, shape: tuple[int, ...]) -> str:
    """What to say of an image of that shape (H, W) in its file, that is seen otherwise."""
    with opened_image(path) as image:
        stored = (image.height, image.width)
    return " once its EXIF has turned it upright; turn the label likewise" if stored == shape else ""


@dataclass(frozen=True)
class LabelledFile:
    """An image file and the file of its label map."""

    stem: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Listing:
    """The files of a split, and what else lies among them and belongs to no sample."""

    files: tuple[LabelledFile, ...]
    ignored: tuple[Path, ...] = ()


class LabelledFiles(Dataset):
    """A data set of image files and label files.

    Args:
        name: of folder and split, for messages.
        layout: how the files are laid out, for messages.
        listing: the files.
        labelling: what the numbers in the label files mean.

    Raises:
        DatasetError: there is no file.
    """

    def __init__(self, name: str, layout: str, listing: Listing, labelling: Labelling) -> None:
        if not listing.files:
            raise DatasetError(f"{name}: no labelled image")
        self.name, self.layout, self.classes = name, layout, labelling.classes
        self.files, self.ignored, self.codes = listing.files, listing.ignored, labelling.codes
        self.own_classes, self.frame_rate = labelling.source, labelling.frame_rate

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the images without suffix."""
        return tuple(file.stem for file in self.files)

    @property
    def moments(self) -> tuple[Moment, ...] | None:
        return moments_from_stems(self.stems, self.frame_rate)

    @property
    def recording_rate(self) -> RecordingRate | None:
        return self.frame_rate

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        file = self.files[index]
        rgb, label = read_rgb(file.image), self.label(index)
        # A label of another size would need resizing, which moves its borders: that is the user's decision.
        if rgb.shape[:2] != label.shape:
            raise DatasetError(
                f"{file.label}: {label.shape[1]}x{label.shape[0]} pixels, its image has {rgb.shape[1]}x{rgb.shape[0]}"
                f"{_turned(file.image, label.shape)}"
            )
        return Sample(file.stem, rgb, label)

    def label(self, index: int) -> NDArray[np.uint8]:
        return read_label(self.files[index].label, self.codes)

    def stored_counts(self, index: int) -> NDArray[np.int64]:
        """How often each number stands in the label file of sample `index`, (256,); raises as `label`."""
        return np.bincount(_known_values(self.files[index].label, self.codes).ravel(), minlength=256)


class DatasetPart(Dataset):
    """The samples of `whole` numbered in `indices`, in that order: one drive, all but one, every tenth image.

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
        # Taken once: rendered scenes make a million names at every call.
        names = self.whole.stems
        return tuple(names[index] for index in self.indices)

    @property
    def moments(self) -> tuple[Moment, ...] | None:
        moments = self.whole.moments
        return None if moments is None else tuple(moments[index] for index in self.indices)

    @property
    def recording_rate(self) -> RecordingRate | None:
        return self.whole.recording_rate

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> Sample:
        return self.whole.sample(self.indices[index])

    def label(self, index: int) -> NDArray[np.uint8]:
        return self.whole.label(self.indices[index])


def part_of(whole: Dataset, split: Split) -> Dataset:
    """The samples of `whole` that `split` takes by their stems: all of them where it names no part.

    Raises:
        DatasetError: none is left, or a list names one that is not there.
    """
    if not split.part:
        return whole
    indices = split.indices(whole.stems, name=whole.name)
    return DatasetPart(whole, indices, name=f"{whole.name}, {'without' if split.without else 'only'} {split.part}")
