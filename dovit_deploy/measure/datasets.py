"""Data sets of labelled images, whatever their layout: what other floors import, and which layout a folder has.

A split is the name of one; `NAME:PREFIX` takes only its images whose stems start so (one drive, one city), and
`NAME:-PREFIX` all but them.
"""

from __future__ import annotations

from pathlib import Path

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.ade20k_layout import ade20k_files, is_ade20k
from dovit_deploy.measure.cityscapes_layout import cityscapes_files, is_cityscapes
from dovit_deploy.measure.dataset_part import DatasetPart, with_prefix
from dovit_deploy.measure.folder_layout import SegmentationFolder, class_list_from_file
from dovit_deploy.measure.labelled_files import IGNORE, ClassList, Dataset, LabelledFiles, Sample
from dovit_deploy.measure.labelled_pictures import LAYOUT, LabelledPictures, is_picture_layout, pictures_from_path
from dovit_deploy.measure.rendered_scenes import RenderedScenes
from dovit_deploy.measure.segnet_layout import is_segnet, segnet_files

__all__ = [
    "IGNORE",
    "SCENES",
    "ClassList",
    "Dataset",
    "DatasetPart",
    "LabelledFiles",
    "LabelledPictures",
    "RenderedScenes",
    "Sample",
    "SegmentationFolder",
    "class_list_from_file",
    "dataset_from_path",
    "labelled_pictures_from_path",
    "with_prefix",
]

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


def labelled_pictures_from_path(path: str | Path, split: str) -> LabelledPictures:
    """The split of a classifier's data set at `path`; arguments and errors as `pictures_from_path` has them.

    Raises:
        DatasetError: also for a data set of label maps.
    """
    root = Path(path)
    if str(path) == SCENES and not root.exists():
        raise DatasetError(f"'{SCENES}' are labelled pixel by pixel; a classifier's data set is {LAYOUT}")
    if _is_segmentation(root):
        raise DatasetError(f"{root}: a data set of label maps, for segmentation; a classifier's is {LAYOUT}")
    return pictures_from_path(root, split)


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
    if is_picture_layout(root, split) and not _is_segmentation(root):
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
