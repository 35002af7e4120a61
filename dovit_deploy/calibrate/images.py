"""What is calibrated on: images with or without labels, divided into a search part and a held-out check part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from dovit_deploy.bundle.calibration import Calibration, PartName
from dovit_deploy.calibrate.units import Recorded
from dovit_deploy.datasets.dataset import Dataset
from dovit_deploy.datasets.layouts import FolderFiles, images_in
from dovit_deploy.datasets.summary import DataSummary, summary_of, summary_of_images
from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.intervals import Blocks, blocks_of
from dovit_deploy.printing import plural
from dovit_deploy.runtime.results import ClassMap
from dovit_deploy.sources.images import is_image, read_image
from dovit_deploy.sources.source import RGB

FEWEST_TO_DIVIDE = 4
"""Blocks: two in each part."""
NEIGHBOURS = 10
"""Images that stay together where nothing says when they were recorded."""


@dataclass(frozen=True)
class CalibrationImage:
    """One image: `rgb` (H, W, 3) uint8, `label` (H, W) uint8 with 255 where nothing is known, or None."""

    rgb: RGB
    label: ClassMap | None


Given = TypeVar("Given")


@dataclass(frozen=True)
class PickedImages(Generic[Given]):
    """Some of several images, each made of its number when its turn comes."""

    numbers: Sequence[int]
    image: Callable[[int], Given]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Given]:
        return map(self.image, self.numbers)


def spread(numbers: Sequence[int], most: int) -> Sequence[int]:
    """At most `most` of them, evenly over all."""
    return numbers[:: max(1, -(-len(numbers) // most))]


class CalibrationImages(Protocol):
    """A number of images, in an order in which neighbours are alike."""

    @property
    def name(self) -> str:
        """As the user gave them."""

    @property
    def stems(self) -> tuple[str, ...]:
        """A name of each."""

    @property
    def labelled(self) -> bool:
        """Whether they come with labels."""

    @property
    def blocks(self) -> Blocks:
        """Which of them the bootstrap draws together."""

    @property
    def recorded(self) -> Recorded:
        """What is known of when they were recorded."""

    @property
    def split(self) -> str | None:
        """Which split of a data set; None for a folder."""

    def image(self, index: int) -> CalibrationImage:
        """Decode number `index`; raises InputError naming the file when it cannot be used."""

    def summary(self) -> DataSummary:
        """What was found when they were opened."""

    def check(self) -> None:
        """Decode everything once, so that a fault shows before the search; raises InputError for the first."""


class SplitImages:
    """The images of a data set's split with their labels; `name` and `split` as the user named them."""

    labelled = True

    def __init__(self, data: Dataset, *, name: str, split: str) -> None:
        self.data, self.name, self.split = data, name, split
        self.stems = tuple(data.stems)
        self.blocks = blocks_of(len(data), data.moments)
        self.recorded = Recorded(self.stems, data.recording_rate)

    def image(self, index: int) -> CalibrationImage:
        sample = self.data.sample(index)
        return CalibrationImage(sample.rgb, sample.label)

    def summary(self) -> DataSummary:
        return summary_of(self.data)

    def check(self) -> None:
        self.data.check()


class FolderImages:
    """The images of a folder, `recursive` also of those below it, in the order of `walked_files`.

    Raises:
        DatasetError: there is no such folder, or no image in it.
    """

    labelled = False
    # A folder has no splits; what is None here is null in `calibration.json`.
    split = None

    def __init__(self, folder: Path, *, recursive: bool = False) -> None:
        self.name = str(folder)
        found = image_files(folder, recursive=recursive)
        self.paths, self.ignored = found.taken, found.ignored
        if not self.paths:
            raise DatasetError(f"{folder}: no image in it")
        self.stems = tuple(path.relative_to(folder).as_posix() for path in self.paths)
        # They may be frames of a video: what is alike stays on one side where they are divided.
        self.blocks = neighbours(len(self.paths))
        self.recorded = Recorded.of_files(self.stems)

    def image(self, index: int) -> CalibrationImage:
        return CalibrationImage(read_image(self.paths[index]), None)

    def summary(self) -> DataSummary:
        return summary_of_images(self.name, len(self.paths), self.ignored)

    def check(self) -> None:
        for path in self.paths:
            read_image(path)


def image_files(folder: Path, *, recursive: bool = False) -> FolderFiles:
    """The images that lie in `folder`, by suffix or content, `recursive` also below it; none where it is not there."""
    try:
        found = images_in(folder, recursive=recursive)
    except DatasetError:
        return FolderFiles((), ())
    unusual = [path for path in found.ignored if not path.name.startswith(".") and is_image(path)]
    ignored = tuple(path for path in found.ignored if path not in unusual)
    return FolderFiles(tuple(sorted((*found.taken, *unusual))), ignored)


@dataclass(frozen=True)
class Parts:
    """Indices of the images of both parts, rising."""

    search: tuple[int, ...]
    check: tuple[int, ...]


def neighbours(images: int, *, fewest: int = FEWEST_TO_DIVIDE + 1) -> Blocks:
    """Blocks of at most ten images that follow each other; shorter ones where there would be fewer than `fewest`."""
    length = max(1, min(NEIGHBOURS, images // fewest))
    return Blocks(np.arange(images) // length)


def halves(blocks: Blocks, *, seed: int) -> Parts:
    """Half of the blocks for the search, the other half held out, drawn by `seed`.

    Raises:
        DatasetError: fewer than four images.
    """
    # Whole blocks, since neighbouring images of a drive are almost copies of each other: divided one by one, the
    # search would have seen the held-out ones. One short clip is divided all the same, into shorter pieces.
    images = len(blocks.number)
    divided = blocks if blocks.count >= FEWEST_TO_DIVIDE else neighbours(images)
    if divided.count < FEWEST_TO_DIVIDE:
        raise DatasetError(
            f"{plural(images, 'image')} given; at least {FEWEST_TO_DIVIDE} are needed, since half are held out"
        )
    drawn = np.random.default_rng(seed).permutation(divided.count)
    searched = np.isin(divided.number, drawn[: (divided.count + 1) // 2])
    return Parts(tuple(np.flatnonzero(searched).tolist()), tuple(np.flatnonzero(~searched).tolist()))


def indices_of(calibration: Calibration, images: CalibrationImages, part: PartName) -> tuple[int, ...]:
    """The indices of the images of one part of a calibration, rising."""
    (found,) = (set(entry.images) for entry in calibration.parts if entry.part == part)
    return tuple(index for index, stem in enumerate(images.stems) if stem in found)
