"""The package's own layout of a data set.

classes.json            {"classes": [{"id", "name", "color": [R, G, B]}, ...], "ignore": id or absent}
<split>.txt             stems, one per line
images/<split>/<stem>.* any image that Pillow reads
labels/<split>/<stem>.png  8-bit, the pixel value is the class id, as large as the image
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dovit_deploy.datasets.dataset import (
    IGNORE,
    ClassList,
    Codes,
    LabelledFile,
    LabelledFiles,
    by_stem,
    lines_of,
    listed,
    paired,
    plain_codes,
)
from dovit_deploy.errors import DatasetError


def class_list_from_file(path: Path) -> ClassList:
    """Read `classes.json`.

    Raises:
        DatasetError: it is absent, not JSON, or its ids are not 0..K-1 once the ignored one is left out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ignore = content.get("ignore")
        entries = sorted((entry for entry in content["classes"] if entry["id"] != ignore), key=lambda e: e["id"])
        ids = [entry["id"] for entry in entries]
        names = tuple(str(entry["name"]) for entry in entries)
        colours = tuple(_colour(entry["color"]) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of classes ({error})") from error
    if not ids or ids != list(range(len(ids))) or len(ids) > IGNORE:
        raise DatasetError(f"{path}: class ids are {ids}; they must be 0, 1, 2, ... without gaps, below {IGNORE}")
    if not (ignore is None or (isinstance(ignore, int) and 0 <= ignore <= IGNORE)):
        raise DatasetError(f"{path}: 'ignore' is {ignore!r}; it must be a pixel value, 0 to {IGNORE}")
    return ClassList(names, colours, ignore)


def _colour(values: Any) -> tuple[int, int, int]:  # noqa: ANN401  parsed JSON
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {values} is not RGB in 0..255")
    return red, green, blue


class SegmentationFolder(LabelledFiles):
    """One split of a folder in this layout; images are decoded when asked for.

    Raises:
        DatasetError: a list, an image or a label is missing, a stem is listed twice, or the split is empty.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        classes = class_list_from_file(root / "classes.json")
        if not (root / f"{split}.txt").is_file():
            known = ", ".join(sorted(path.stem for path in root.glob("*.txt"))) or "none"
            raise DatasetError(f"{root / f'{split}.txt'}: cannot be read, it is not there; splits here: {known}")
        stems = lines_of(root / f"{split}.txt")
        images = by_stem(listed(root / "images" / split))
        files = [_file(root, split, stem, images) for stem in stems]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None) if len(set(stems)) < len(stems) else None
        if twice is not None:
            raise DatasetError(f"{root / f'{split}.txt'}: lists '{twice}' twice")
        super().__init__(f"{root} ({split})", files, classes, plain_codes(len(classes.names), classes.ignore))


def _file(root: Path, split: str, stem: str, images: dict[str, Path]) -> LabelledFile:
    label = root / "labels" / split / f"{stem}.png"
    if stem not in images:
        raise DatasetError(f"{root / 'images' / split}: no image for '{stem}' of {split}.txt")
    if not label.is_file():
        raise DatasetError(f"{label}: missing label of '{stem}' in {split}.txt")
    return LabelledFile(stem, images[stem], label)


# ADE20K's scene parsing benchmark: 150 classes numbered from 1 in the files; 0 is void.
#
# images/training/<stem>.jpg   annotations/training/<stem>.png   the same for validation
# objectInfo150.txt            names of the classes, where it is kept

ADE20K_CLASSES = 150
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
    palette = tuple(_ade20k_colour(number + 1) for number in range(ADE20K_CLASSES))
    return LabelledFiles(f"{root} ({split})", files, ClassList(_names(root), palette, 0), codes())


def codes() -> Codes:
    """1..150 become 0..149, 0 becomes void ("reduce zero label")."""
    table = np.full(256, IGNORE, np.uint8)
    table[1 : ADE20K_CLASSES + 1] = np.arange(ADE20K_CLASSES)
    return Codes(table, np.arange(256) <= ADE20K_CLASSES, f"ids are 0 (void) to {ADE20K_CLASSES}")


def _names(root: Path) -> tuple[str, ...]:
    path = root / NAMES_FILE
    if not path.is_file():
        return tuple(f"class {number + 1}" for number in range(ADE20K_CLASSES))
    # Idx, Ratio, Train, Val, Stuff, Name, separated by tabs, under a line of headings.
    rows = [line.split("\t") for line in lines_of(path)][1:]
    if len(rows) != ADE20K_CLASSES or any(row[0].strip() != str(number + 1) for number, row in enumerate(rows)):
        raise DatasetError(f"{path}: {len(rows)} rows; it must number {ADE20K_CLASSES} classes from 1")
    # "wall", "door;double;door": the first of the synonyms.
    return tuple(row[-1].replace(";", ",").split(",")[0].strip() for row in rows)


def _ade20k_colour(number: int) -> tuple[int, int, int]:
    """A colour of its own for each number: its bits dealt to red, green and blue in turn (Pascal VOC's colour map)."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


# CamVid as SegNet's tutorial spreads it: 11 classes, ids in CamVid's usual order, 11 is void.
#
# train/<stem>.png   trainannot/<stem>.png   the same for val and test, and beside them, where they are kept,
# train.txt          "/SegNet/CamVid/train/<stem>.png /SegNet/CamVid/trainannot/<stem>.png" per line

CAMVID_LABELS = "annot"
"""What the name of a folder of labels ends in."""

CAMVID_VOID = 11

CAMVID_CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
"""Names and colours of the 11 classes; the position is the id."""


def is_segnet(root: Path) -> bool:
    """Whether `root` has a folder of images with one of labels beside it, in this layout's names."""
    return any(
        (path.parent / path.name.removesuffix(CAMVID_LABELS)).is_dir() for path in root.glob(f"?*{CAMVID_LABELS}")
    )


def segnet_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, in the order of its list where there is one.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a list that names no pairs.
    """
    names, colours = zip(*CAMVID_CLASSES, strict=True)
    classes = ClassList(names, colours, CAMVID_VOID)
    text = root / f"{split}.txt"
    if text.is_file():
        files = [_file_of_line(root, text, line) for line in lines_of(text)]
    else:
        files = paired(listed(root / split), listed(root / f"{split}{CAMVID_LABELS}"))
    return LabelledFiles(f"{root} ({split})", files, classes, plain_codes(len(names), CAMVID_VOID))


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


# Cityscapes: 19 classes; label ids become train ids, everything else is void.
#
# leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png   gtFine/<split>/<city>/<stem>_gtFine_labelIds.png
#
# Source of ids, names and colours: cityscapesScripts, `helpers/labels.py`.

IMAGES, CITYSCAPES_LABELS = "leftImg8bit", "gtFine"
IMAGE_END, LABEL_END = "_leftImg8bit.png", "_gtFine_labelIds.png"

HIGHEST_ID = 33

CITYSCAPES_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
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
    return (root / IMAGES).is_dir() and (root / CITYSCAPES_LABELS).is_dir()


def cityscapes_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, city by city.

    Raises:
        DatasetError: no such split, or an image without label or the other way round.
    """
    images = _by_place(root / IMAGES / split, IMAGE_END)
    labels = _by_place(root / CITYSCAPES_LABELS / split, LABEL_END)
    for place in sorted(images.keys() ^ labels.keys()):
        path, missing = (images[place], "label") if place in images else (labels[place], "image")
        raise DatasetError(f"{path}: it has no {missing} ({place[0]}/{place[1]}, split {split})")
    files = [LabelledFile(place[1], images[place], labels[place]) for place in sorted(images)]
    classes = ClassList(
        tuple(entry[1] for entry in CITYSCAPES_CLASSES), tuple(entry[2] for entry in CITYSCAPES_CLASSES), None
    )
    return LabelledFiles(f"{root} ({split})", files, classes, cityscapes_layout_codes())


def cityscapes_layout_codes() -> Codes:
    """Label ids to train ids."""
    table = np.full(256, IGNORE, np.uint8)
    for train_id, (label_id, _, _) in enumerate(CITYSCAPES_CLASSES):
        table[label_id] = train_id
    known = np.arange(256) <= HIGHEST_ID
    return Codes(table, known, f"label ids are 0..{HIGHEST_ID}")


def _by_place(folder: Path, end: str) -> dict[tuple[str, str], Path]:
    """Files of a split by (city, stem)."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    return {(path.parent.name, path.name.removesuffix(end)): path for path in sorted(folder.glob(f"*/*{end}"))}
