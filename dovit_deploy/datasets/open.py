"""Which data set is at a path: its layout is recognised by the folders in it, and a word stands for rendered scenes.

A split is called by its name; `NAME:PREFIX` takes only the images whose stems start so (one drive, one city), and
`NAME:-PREFIX` all but them.
"""

from __future__ import annotations

from pathlib import Path

from dovit_deploy.datasets.classification import LAYOUT, LabelledImages, class_folders, has_class_folders
from dovit_deploy.datasets.dataset import Dataset, part_of, split_from_text
from dovit_deploy.datasets.layouts import LAYOUTS, layout_of
from dovit_deploy.datasets.scenes import RenderedScenes
from dovit_deploy.errors import DatasetError

RENDERED = "rendered"
"""In place of a folder: rendered street scenes."""

RENDERED_NAMES = (RENDERED, "scenes")
"""The word, and the one of earlier versions, which scripts may still use."""

_LAYOUTS = ", ".join(layout.name for layout in LAYOUTS)


def is_rendered(dataset: str | Path) -> bool:
    """Whether `dataset` is a word for rendered scenes; a folder of that name takes precedence."""
    return str(dataset) in RENDERED_NAMES and not Path(dataset).exists()


def dataset_from_path(path: str | Path, split: str) -> Dataset:
    """The split of the data set of label maps at `path`.

    Args:
        path: a folder, or `rendered` where there is no folder of that name.
        split: `NAME`, `NAME:PREFIX` or `NAME:-PREFIX`.

    Raises:
        DatasetError: no such folder, layout or split, or files that do not belong together; the message names them.
    """
    wanted = split_from_text(split)
    if is_rendered(path):
        return part_of(RenderedScenes(wanted.name), wanted)
    return part_of(_files(Path(path), wanted.name), wanted)


def _files(root: Path, split: str) -> Dataset:
    if not root.exists():
        raise DatasetError(f"{root}: no such data set; give its folder, or '{RENDERED}' for rendered street scenes")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; a data set is a folder ({_LAYOUTS})")
    layout = layout_of(root)
    if layout is not None:
        return layout.files(root, split)
    if has_class_folders(root, split):
        raise DatasetError(f"{root}: images in class folders, for classifiers; layouts with label maps: {_LAYOUTS}")
    raise DatasetError(f"{root}: not a data set that is known here; layouts: {_LAYOUTS}")


def labelled_images_from_path(path: str | Path, split: str) -> LabelledImages:
    """The split of the classifier's data set at `path`.

    Args:
        path: a folder.
        split: `NAME`; `NAME:PREFIX` for its images whose `folder/name` starts so, `NAME:-PREFIX` for all but them.

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
