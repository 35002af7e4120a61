"""Data sets of labelled images, whatever their layout: what other floors import, and which layout a folder has.

A split is the name of one; `NAME:PREFIX` takes only its images whose stems start so (one drive, one city), and
`NAME:-PREFIX` all but them.
"""

from __future__ import annotations

from pathlib import Path

from dovit_deploy.datasets.classification import LAYOUT, LabelledImages, has_class_folders, images_from_path
from dovit_deploy.datasets.dataset import Dataset, with_prefix
from dovit_deploy.datasets.layouts import (
    SegmentationFolder,
    ade20k_files,
    cityscapes_files,
    is_ade20k,
    is_cityscapes,
    is_segnet,
    segnet_files,
)
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.errors import DatasetError

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
