"""CamVid as SegNet's tutorial spreads it: 11 classes, ids in CamVid's usual order, 11 is void.

train/<stem>.png   trainannot/<stem>.png   the same for val and test, and beside them, where they are kept,
train.txt          "/SegNet/CamVid/train/<stem>.png /SegNet/CamVid/trainannot/<stem>.png" per line
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.labelled_files import (
    ClassList,
    LabelledFile,
    LabelledFiles,
    lines_of,
    listed,
    paired,
    plain_codes,
)
from dovit_deploy.scenes.classes import CLASS_NAMES, IGNORE_ID, PALETTE

LABELS = "annot"
"""What the name of a folder of labels ends in."""


def is_segnet(root: Path) -> bool:
    """Whether `root` has a folder of images with one of labels beside it, in this layout's names."""
    return any((path.parent / path.name.removesuffix(LABELS)).is_dir() for path in root.glob(f"?*{LABELS}"))


def segnet_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, in the order of its list where there is one.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a list that names no pairs.
    """
    colours = tuple((int(red), int(green), int(blue)) for red, green, blue in PALETTE)
    classes = ClassList(CLASS_NAMES, colours, IGNORE_ID)
    text = root / f"{split}.txt"
    if text.is_file():
        files = [_file_of_line(root, text, line) for line in lines_of(text)]
    else:
        files = paired(listed(root / split), listed(root / f"{split}{LABELS}"))
    return LabelledFiles(f"{root} ({split})", files, classes, plain_codes(len(CLASS_NAMES), IGNORE_ID))


def _file_of_line(root: Path, text: Path, line: str) -> LabelledFile:
    """The two files that a line names; what stands before their folders is another machine's affair."""
    parts = line.split()
    if len(parts) != 2:
        raise DatasetError(f"{text}: '{line}' is not an image and its label")
    image, label = (root.joinpath(*PurePosixPath(part.replace("\\", "/")).parts[-2:]) for part in parts)
    for path in (image, label):
        if not path.is_file():
            raise DatasetError(f"{path}: missing; {text.name} lists it")
    if image.stem != label.stem:
        raise DatasetError(f"{text}: '{image.name}' stands beside the label '{label.name}' of another image")
    return LabelledFile(image.stem, image, label)
