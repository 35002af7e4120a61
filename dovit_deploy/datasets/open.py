"""Which data set is at a path: its layout is recognised by the folders in it, and a word stands for rendered scenes.

How a part of a split is named, `split.py` says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dovit_deploy.datasets.class_lists import CLASSES, labelling_from_file
from dovit_deploy.datasets.classification import LAYOUT, LabelledImages, class_folders, has_class_folders
from dovit_deploy.datasets.dataset import Dataset, LabelledFiles, part_of
from dovit_deploy.datasets.layouts import LAYOUTS, layout_of
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.datasets.split import split_from_text
from dovit_deploy.errors import DatasetError

RENDERED = "rendered"
"""In place of a folder: rendered street scenes."""

RENDERED_NAMES = (RENDERED, "scenes")
"""The word, and the one of earlier versions, which scripts may still use."""

RENDERED_SPLITS = ("train", "val", "test")

_LAYOUTS = ", ".join(layout.name for layout in LAYOUTS)


def is_rendered(dataset: str | Path) -> bool:
    """Whether `dataset` is a word for rendered scenes; a folder of that name takes precedence."""
    return str(dataset) in RENDERED_NAMES and not Path(dataset).exists()


def named_split(given: str) -> tuple[str, str]:
    """Data set and split of DATASET or DATASET:SPLIT, as `dovit eval` takes the split; empty where none is named."""
    # What follows the colon of an address is no split.
    if "://" in given and not Path(given).exists():
        return given, ""
    parts = given.split(":")
    # A colon may belong to the path: the longest beginning that is there is the data set.
    for count in range(len(parts), 0, -1):
        dataset = ":".join(parts[:count])
        if Path(dataset).exists() or is_rendered(dataset):
            return dataset, ":".join(parts[count:])
    return parts[0], ":".join(parts[1:])


def dataset_from_path(path: str | Path, split: str, *, classes: Path | None = None) -> Dataset:
    """The split of the data set of label maps at `path`.

    Args:
        path: a folder, or `rendered` where there is no folder of that name.
        split: its name, or that of a part of it.
        classes: a list of the classes that the label maps hold; it takes precedence over one in the folder.

    Raises:
        DatasetError: no such folder, layout or split, or files that do not belong together; the message names them.
    """
    wanted = split_from_text(split)
    if not is_rendered(path):
        return part_of(_files(Path(path), wanted.name, classes), wanted)
    if classes is not None:
        raise DatasetError(f"'{path}' scenes have classes of their own; a list of classes is for a folder")
    if wanted.name not in RENDERED_SPLITS:
        raise DatasetError(f"'{path}' scenes: no split '{wanted.name}'; splits: {', '.join(RENDERED_SPLITS)}")
    return part_of(RenderedScenes(wanted.name), wanted)


def has_split(path: str | Path, split: str) -> bool:
    """Whether something in the folder `path` is called after the split, complete or not; False for what is no data set
    of label maps."""
    layout = layout_of(Path(path))
    return layout is not None and split_from_text(split).name in layout.splits(Path(path))


def _files(root: Path, split: str, classes: Path | None) -> LabelledFiles:
    if not root.exists():
        raise DatasetError(f"{root}: no such data set; give its folder, or '{RENDERED}' for rendered street scenes")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; a data set is a folder ({_LAYOUTS})")
    layout = layout_of(root)
    if layout is not None:
        own = classes or (root / CLASSES if (root / CLASSES).is_file() else None)
        labelling = layout.labelling(root) if own is None else labelling_from_file(own)
        labelling = replace(labelling, frame_rate=labelling.frame_rate or layout.frame_rate)
        return LabelledFiles(f"{root} ({split})", layout.name, layout.files(root, split), labelling)
    if has_class_folders(root, split):
        raise DatasetError(f"{root}: images in class folders, for classifiers; layouts with label maps: {_LAYOUTS}")
    raise DatasetError(f"{root}: not a data set that is known here; layouts: {_LAYOUTS}")


def labelled_images_from_path(path: str | Path, split: str) -> LabelledImages:
    """The split of the classifier's data set at `path`.

    Args:
        path: a folder.
        split: its name, or that of a part of it; an image's stem is `folder/name`.

    Raises:
        DatasetError: a data set of label maps; no such folder or split, a class folder that no list names, or no image.
    """
    wanted, root = split_from_text(split), Path(path)
    if is_rendered(path):
        raise DatasetError(f"'{path}' scenes are labelled pixel by pixel; a classifier's data set is {LAYOUT}")
    # A data set of label maps is called by its name even where a folder in it, as images/train, passes for a class.
    if root.is_dir() and layout_of(root) is not None:
        raise DatasetError(f"{root}: a data set of label maps, for segmentation; a classifier's is {LAYOUT}")
    return class_folders(root, wanted)
