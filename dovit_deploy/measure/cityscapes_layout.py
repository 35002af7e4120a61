"""Cityscapes: 19 classes; label ids become train ids, everything else is void.

leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png   gtFine/<split>/<city>/<stem>_gtFine_labelIds.png

Source of ids, names and colours: cityscapesScripts, `helpers/labels.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.labelled_files import IGNORE, ClassList, Codes, LabelledFile, LabelledFiles

IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE_END, LABEL_END = "_leftImg8bit.png", "_gtFine_labelIds.png"

HIGHEST_ID = 33

CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""Label id, name and colour; the position is the train id."""


def is_cityscapes(root: Path) -> bool:
    """Whether `root` has this layout's two folders."""
    return (root / IMAGES).is_dir() and (root / LABELS).is_dir()


def cityscapes_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, city by city.

    Raises:
        DatasetError: no such split, or an image without label or the other way round.
    """
    images = _by_place(root / IMAGES / split, IMAGE_END)
    labels = _by_place(root / LABELS / split, LABEL_END)
    for place in sorted(images.keys() ^ labels.keys()):
        path, missing = (images[place], "label") if place in images else (labels[place], "image")
        raise DatasetError(f"{path}: it has no {missing} ({place[0]}/{place[1]}, split {split})")
    files = [LabelledFile(place[1], images[place], labels[place]) for place in sorted(images)]
    classes = ClassList(tuple(entry[1] for entry in CLASSES), tuple(entry[2] for entry in CLASSES), None)
    return LabelledFiles(f"{root} ({split})", files, classes, codes())


def codes() -> Codes:
    """Label ids to train ids."""
    table = np.full(256, IGNORE, np.uint8)
    for train_id, (label_id, _, _) in enumerate(CLASSES):
        table[label_id] = train_id
    known = np.arange(256) <= HIGHEST_ID
    return Codes(table, known, f"label ids are 0..{HIGHEST_ID}")


def _by_place(folder: Path, end: str) -> dict[tuple[str, str], Path]:
    """Files of a split by (city, stem)."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    return {(path.parent.name, path.name.removesuffix(end)): path for path in sorted(folder.glob(f"*/*{end}"))}
