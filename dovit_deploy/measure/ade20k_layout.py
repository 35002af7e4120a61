"""ADE20K's scene parsing benchmark: 150 classes numbered from 1 in the files; 0 is void.

images/training/<stem>.jpg   annotations/training/<stem>.png   the same for validation
objectInfo150.txt            names of the classes, where it is kept
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.labelled_files import IGNORE, ClassList, Codes, LabelledFiles, lines_of, listed, paired

CLASSES = 150
NAMES_FILE = "objectInfo150.txt"
SPLITS = {"train": "training", "val": "validation"}
"""What the short names of splits are called here."""


def is_ade20k(root: Path) -> bool:
    """Whether `root` has this layout's two folders."""
    return (root / "images").is_dir() and (root / "annotations").is_dir()


def ade20k_files(root: Path, split: str) -> LabelledFiles:
    """The split (train, val, or the folder's own name) of the folder `root`.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a faulty list of names.
    """
    folder = SPLITS.get(split, split)
    files = paired(listed(root / "images" / folder), listed(root / "annotations" / folder))
    palette = tuple(_colour(number + 1) for number in range(CLASSES))
    return LabelledFiles(f"{root} ({split})", files, ClassList(_names(root), palette, 0), codes())


def codes() -> Codes:
    """1..150 become 0..149, 0 becomes void ("reduce zero label")."""
    table = np.full(256, IGNORE, np.uint8)
    table[1 : CLASSES + 1] = np.arange(CLASSES)
    return Codes(table, np.arange(256) <= CLASSES, f"ids are 0 (void) to {CLASSES}")


def _names(root: Path) -> tuple[str, ...]:
    path = root / NAMES_FILE
    if not path.is_file():
        return tuple(f"class {number + 1}" for number in range(CLASSES))
    # Idx, Ratio, Train, Val, Stuff, Name, separated by tabs, under a line of headings.
    rows = [line.split("\t") for line in lines_of(path)][1:]
    if len(rows) != CLASSES or any(row[0].strip() != str(number + 1) for number, row in enumerate(rows)):
        raise DatasetError(f"{path}: {len(rows)} rows; it must number {CLASSES} classes from 1")
    # "wall", "door;double;door": the first of the synonyms.
    return tuple(row[-1].replace(";", ",").split(",")[0].strip() for row in rows)


def _colour(number: int) -> tuple[int, int, int]:
    """A colour of its own for each number: its bits dealt to red, green and blue in turn (Pascal VOC's colour map)."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]
