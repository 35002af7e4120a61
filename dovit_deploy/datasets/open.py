"""Data sets of labelled images, whatever their layout: what other floors import, and which layout a folder has.

A split is the name of one; `NAME:PREFIX` takes only its images whose stems start so (one drive, one city), and
`NAME:-PREFIX` all but them.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.classification import LAYOUT, LabelledImages, has_class_folders, images_from_path
from dovit_deploy.datasets.dataset import (
    ClassList,
    Dataset,
    Sample,
    frequencies,
    with_prefix,
)
from dovit_deploy.datasets.layouts import (
    SegmentationFolder,
    ade20k_files,
    cityscapes_files,
    is_ade20k,
    is_cityscapes,
    is_segnet,
    segnet_files,
)
from dovit_deploy.errors import DatasetError
from dovit_scenes.dataset import scene_sample
from dovit_scenes.things import CLASS_NAMES, PALETTE

# The package's rendered street scenes as a data set without end: every image a street of its own, labels exact.

SIZE = (360, 480)
"""Height and width of CamVid's images."""

UNLIMITED, FINITE = 1_000_000, 100
"""Images of the split "train", and of every other one."""

COUNTED = 48
"""Images that class frequencies are estimated on."""


class RenderedScenes:
    """Street scenes of `size` (height, width), the same for the same split, however many are asked for.

    Args:
        split: each name is a world of its own; "train" has a million images, others a hundred.
        size: height and width in pixels.
        count: another number of images.
        fullness: lowest and highest, within [0, 1]: each street is drawn between bare (0) and full (1).
    """

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] = SIZE,
        count: int | None = None,
        fullness: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.split, self.size, self.fullness = split, size, fullness
        self.name = f"rendered scenes ({split})"
        colours = tuple((int(red), int(green), int(blue)) for red, green, blue in PALETTE)
        self.classes = ClassList(CLASS_NAMES, colours, None)
        self.count = count or (UNLIMITED if split == "train" else FINITE)
        self.seed = zlib.crc32(split.encode())

    @property
    def stems(self) -> tuple[str, ...]:
        """Made when asked for: a million names are not kept."""
        return tuple(f"{self.split}_{number:06d}" for number in range(self.count))

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """Render number `index`: half a second or so."""
        frame = scene_sample(self.seed, index, size=self.size, share=self._share(index))
        return Sample(f"{self.split}_{index:06d}", frame.rgb, frame.labels)

    def _share(self, index: int) -> float:
        """Of the things of street `index`; a square, since the number of things in sight rises steeply at first."""
        return float(np.random.default_rng([self.seed, index, 10]).uniform(*self.fullness) ** 2)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map of number `index`, (H, W) uint8; no pixel is void."""
        return self.sample(index).label

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the pixels of each class, (K,), over the first images."""
        few = min(COUNTED, self.count)
        return frequencies(RenderedScenes(self.split, size=self.size, count=few, fullness=self.fullness))

    def check(self) -> None:
        """Nothing to check: there are no files."""


SCENES = "scenes"
"""In place of a folder: rendered street scenes."""

LAYOUTS = "classes.json with images/ and labels/, SegNet's CamVid, Cityscapes, ADE20K"


def dataset_from_path(path: str | Path, split: str) -> Dataset:
    """The split of the data set at `path`, its layout recognised by the folders in it.

    Args:
        path: a folder, or `scenes` where there is no folder of that name.
        split: `NAME`, `NAME:PREFIX` or `NAME:-PREFIX`.

    Raises:
        DatasetError: no such folder, layout or split, or files that do not belong together; the message names them.
    """
    name, colon, prefix = split.partition(":")
    if not name or (colon and not prefix.removeprefix("-")):
        raise DatasetError(f"split '{split}': NAME, NAME:PREFIX or NAME:-PREFIX is needed")
    whole = _whole(Path(path), name)
    if not prefix:
        return whole
    return with_prefix(whole, prefix.removeprefix("-"), without=prefix.startswith("-"))


def labelled_images_from_path(path: str | Path, split: str) -> LabelledImages:
    """The split of a classifier's data set at `path`; arguments and errors as `images_from_path` has them.

    Raises:
        DatasetError: also for a data set of label maps.
    """
    root = Path(path)
    if str(path) == SCENES and not root.exists():
        raise DatasetError(f"'{SCENES}' are labelled pixel by pixel; a classifier's data set is {LAYOUT}")
    if _is_segmentation(root):
        raise DatasetError(f"{root}: a data set of label maps, for segmentation; a classifier's is {LAYOUT}")
    return images_from_path(root, split)


def _is_segmentation(root: Path) -> bool:
    own = (root / "classes.json").is_file() and (root / "labels").is_dir()
    return own or is_cityscapes(root) or is_ade20k(root) or is_segnet(root)


def _whole(root: Path, split: str) -> Dataset:
    if not root.exists():
        if str(root) == SCENES:
            return RenderedScenes(split)
        raise DatasetError(f"{root}: no such data set; give its folder, or '{SCENES}' for rendered street scenes")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; a data set is a folder ({LAYOUTS})")
    if has_class_folders(root, split) and not _is_segmentation(root):
        raise DatasetError(f"{root}: pictures in class folders, for classifiers; layouts with label maps: {LAYOUTS}")
    if (root / "classes.json").is_file():
        return SegmentationFolder(root, split)
    if is_cityscapes(root):
        return cityscapes_files(root, split)
    if is_ade20k(root):
        return ade20k_files(root, split)
    if is_segnet(root):
        return segnet_files(root, split)
    raise DatasetError(f"{root}: not a data set that is known here; layouts: {LAYOUTS}")
