"""Where are the files of a data set of label maps, and what do its numbers mean? One entry of `LAYOUTS` a layout.

our own     classes.json, <split>.txt            stems, one per line
            images/<split>/<stem>.*              labels/<split>/<stem>.png: the pixel value is the class id
Cityscapes  leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png
            gtFine/<split>/<city>/<stem>_gtFine_labelIds.png
ADE20K      images/training/<stem>.jpg           annotations/training/<stem>.png; the same for validation
            objectInfo150.txt                    names of the classes, where it is kept
CamVid      train/<stem>.png                     trainannot/<stem>.png; the same for val and test
            train.txt                            where it is kept: a path of an image and one of its label map per line
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dovit_deploy.datasets.dataset import IGNORE, ClassList, LabelCodes, LabelledFile, LabelledFiles, plain_codes
from dovit_deploy.errors import DatasetError
from dovit_deploy.files import read_text

Colour = tuple[int, int, int]


LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
"""Of label files, in any case; JPEG among them so that it is refused by its name and not called missing."""


# Our own: classes.json lists id, name and colour ([R, G, B]) of each class, and which id means "ignore", if any.


def own_files(root: Path, split: str) -> LabelledFiles:
    """The split of a folder in our own layout.

    Raises:
        DatasetError: a list, an image or a label is missing, a stem is listed twice, or the split is empty.
    """
    classes = class_list_from_file(root / "classes.json")
    text = root / f"{split}.txt"
    if not text.is_file():
        known = ", ".join(sorted(path.stem for path in root.glob("*.txt"))) or "none"
        raise DatasetError(f"{text}: cannot be read, it is not there; splits here: {known}")
    # The list gives the order, and may leave out files that are there.
    stems = lines_of(text, listing="image")
    images = _by_stem(files_in(root / "images" / split))
    labels = _by_stem([path for path in files_in(root / "labels" / split) if path.suffix.lower() in LABEL_SUFFIXES])
    files = [_own_file(root, split, stem, images, labels) for stem in stems]
    twice = next((stem for stem, times in Counter(stems).items() if times > 1), None)
    if twice is not None:
        raise DatasetError(f"{text}: lists '{twice}' twice")
    return LabelledFiles(f"{root} ({split})", files, classes, plain_codes(len(classes.names), classes.ignore))


def _own_file(root: Path, split: str, stem: str, images: dict[str, Path], labels: dict[str, Path]) -> LabelledFile:
    if stem not in images:
        raise DatasetError(f"{root / 'images' / split}: no image for '{stem}' of {split}.txt")
    if stem not in labels:
        raise DatasetError(f"{root / 'labels' / split / f'{stem}.png'}: missing label of '{stem}' in {split}.txt")
    return LabelledFile(stem, images[stem], labels[stem])


def class_list_from_file(path: Path) -> ClassList:
    """Read `classes.json`.

    Raises:
        DatasetError: it is absent, not JSON, or its ids are not 0..K-1 once the ignored one is left out.
    """
    try:
        content = json.loads(read_text(path))
        ignore = content.get("ignore")
        entries = sorted((entry for entry in content["classes"] if entry["id"] != ignore), key=lambda e: e["id"])
        ids = [entry["id"] for entry in entries]
        names = tuple(str(entry["name"]) for entry in entries)
        colours = tuple(_colour(entry["color"]) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of classes ({error})") from error
    # 255 must stay free: it is what "ignore" becomes in label maps.
    if not ids or ids != list(range(len(ids))) or len(ids) > IGNORE:
        raise DatasetError(f"{path}: class ids are {ids}; they must be 0, 1, 2, ... without gaps, below {IGNORE}")
    if not (ignore is None or (isinstance(ignore, int) and 0 <= ignore <= IGNORE)):
        raise DatasetError(f"{path}: 'ignore' is {ignore!r}; it must be a pixel value, 0 to {IGNORE}")
    return ClassList(names, colours, ignore)


def _colour(values: Any) -> Colour:  # noqa: ANN401  parsed JSON
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {values} is not RGB in 0..255")
    return red, green, blue


# Cityscapes: label ids become train ids, everything else is void.

CITYSCAPES_IMAGES, CITYSCAPES_LABELS = "leftImg8bit", "gtFine"
IMAGE_END, LABEL_END = "_leftImg8bit.png", "_gtFine_labelIds.png"

HIGHEST_LABEL_ID = 33

CITYSCAPES_CLASSES: tuple[tuple[int, str, Colour], ...] = (
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
"""Label id, name and colour; the position is the train id. Source: cityscapesScripts, `helpers/labels.py`."""


def cityscapes_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, city by city.

    Raises:
        DatasetError: no such split, or an image without label or the other way round.
    """
    # Stems are unique within a city only.
    images = _by_city(root / CITYSCAPES_IMAGES / split, IMAGE_END)
    labels = _by_city(root / CITYSCAPES_LABELS / split, LABEL_END)
    for city, stem in sorted(images.keys() ^ labels.keys()):
        image = images.get((city, stem))
        path, missing = (image, "label") if image is not None else (labels[city, stem], "image")
        raise DatasetError(f"{path}: it has no {missing} ({city}/{stem}, split {split})")
    files = [LabelledFile(key[1], images[key], labels[key]) for key in sorted(images)]
    _, names, colours = zip(*CITYSCAPES_CLASSES, strict=True)
    return LabelledFiles(f"{root} ({split})", files, ClassList(names, colours, None), _cityscapes_codes())


def _by_city(folder: Path, end: str) -> dict[tuple[str, str], Path]:
    """Files of a split by (city, stem)."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    # The suffix in any case: some tools write ".PNG".
    found = sorted(path for path in folder.glob("*/*") if path.name.lower().endswith(end.lower()))
    return {(path.parent.name, path.name[: -len(end)]): path for path in found}


def _cityscapes_codes() -> LabelCodes:
    table = np.full(256, IGNORE, np.uint8)
    for train_id, (label_id, _, _) in enumerate(CITYSCAPES_CLASSES):
        table[label_id] = train_id
    # Ids without a train id are void, but known: only what no annotation can hold is a fault.
    return LabelCodes(table, np.arange(256) <= HIGHEST_LABEL_ID, f"label ids are 0..{HIGHEST_LABEL_ID}")


# ADE20K's scene parsing benchmark: 150 classes numbered from 1 in the files; 0 is void.

ADE20K_CLASSES = 150
ADE20K_NAMES = "objectInfo150.txt"
ADE20K_SPLITS = {"train": "training", "val": "validation"}
"""What the short names of splits are called here."""


def ade20k_files(root: Path, split: str) -> LabelledFiles:
    """The split (train, val, or the folder's own name) of the folder `root`.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a faulty list of names.
    """
    folder = ADE20K_SPLITS.get(split, split)
    files = _paired(files_in(root / "images" / folder), files_in(root / "annotations" / folder))
    palette = tuple(_bit_colour(number + 1) for number in range(ADE20K_CLASSES))
    return LabelledFiles(f"{root} ({split})", files, ClassList(_ade20k_names(root), palette, 0), _ade20k_codes())


def _ade20k_codes() -> LabelCodes:
    """1..150 become 0..149, 0 becomes void: "reduce zero label" in the words of mmseg."""
    table = np.full(256, IGNORE, np.uint8)
    table[1 : ADE20K_CLASSES + 1] = np.arange(ADE20K_CLASSES)
    return LabelCodes(table, np.arange(256) <= ADE20K_CLASSES, f"ids are 0 (void) to {ADE20K_CLASSES}")


def _ade20k_names(root: Path) -> tuple[str, ...]:
    path = root / ADE20K_NAMES
    if not path.is_file():
        return tuple(f"class {number + 1}" for number in range(ADE20K_CLASSES))
    # Idx, Ratio, Train, Val, Stuff, Name, separated by tabs, under a line of headings.
    rows = [line.split("\t") for line in lines_of(path, listing="class")][1:]
    if len(rows) != ADE20K_CLASSES or any(row[0].strip() != str(number + 1) for number, row in enumerate(rows)):
        raise DatasetError(f"{path}: {len(rows)} rows; it must number {ADE20K_CLASSES} classes from 1")
    # "wall", "door;double;door": the first of the synonyms.
    return tuple(row[-1].replace(";", ",").split(",")[0].strip() for row in rows)


def _bit_colour(number: int) -> Colour:
    """A colour of its own for each number: its bits dealt to red, green and blue in turn (Pascal VOC's colour map)."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


# CamVid as SegNet's tutorial distributes it: 11 classes, ids in CamVid's usual order.

CAMVID_LABELS = "annot"
"""What the name of a folder of labels ends in."""

CAMVID_VOID = 11

CAMVID_CLASSES: tuple[tuple[str, Colour], ...] = (
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
"""Name and colour; the position is the id."""


def camvid_files(root: Path, split: str) -> LabelledFiles:
    """The split of the folder `root`, in the order of its list where there is one.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a list that names no pairs.
    """
    text = root / f"{split}.txt"
    if text.is_file():
        files = [_camvid_file(root, text, line) for line in lines_of(text, listing="image")]
    else:
        files = _paired(files_in(root / split), files_in(root / f"{split}{CAMVID_LABELS}"))
    names, colours = zip(*CAMVID_CLASSES, strict=True)
    codes = plain_codes(len(names), CAMVID_VOID)
    return LabelledFiles(f"{root} ({split})", files, ClassList(names, colours, CAMVID_VOID), codes)


def _camvid_file(root: Path, text: Path, line: str) -> LabelledFile:
    """The two files that a line names."""
    parts = line.split()
    if len(parts) != 2:
        raise DatasetError(f"{text}: '{line}' is not an image and its label")
    # "/SegNet/CamVid/train/0001TP.png": only the folder and the name are ours, what precedes them is another machine's.
    image, label = (root.joinpath(*PurePosixPath(part.replace("\\", "/")).parts[-2:]) for part in parts)
    for path in (image, label):
        if not path.is_file():
            raise DatasetError(f"{path}: missing; {text.name} lists it")
    if image.stem != label.stem:
        raise DatasetError(f"{text}: '{image.name}' stands beside the label '{label.name}' of another image")
    return LabelledFile(image.stem, image, label)


def _has_camvid_folders(root: Path) -> bool:
    """Whether some folder has one of labels beside it, as train and trainannot."""
    return any(
        (path.parent / path.name.removesuffix(CAMVID_LABELS)).is_dir() for path in root.glob(f"?*{CAMVID_LABELS}")
    )


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a data set are laid out."""

    name: str
    """For messages."""
    fits: Callable[[Path], bool]
    """Whether a folder has this layout."""
    files: Callable[[Path, str], LabelledFiles]
    """The split of a folder that has it."""


LAYOUTS = (
    Layout(
        "classes.json with images/ and labels/",
        lambda root: (root / "classes.json").is_file() and (root / "labels").is_dir(),
        own_files,
    ),
    Layout(
        "Cityscapes",
        lambda root: (root / CITYSCAPES_IMAGES).is_dir() and (root / CITYSCAPES_LABELS).is_dir(),
        cityscapes_files,
    ),
    Layout("ADE20K", lambda root: (root / "images").is_dir() and (root / "annotations").is_dir(), ade20k_files),
    Layout("CamVid (SegNet's)", _has_camvid_folders, camvid_files),
)
"""The first that fits is taken; our own comes first, since a classes.json is the surest sign."""


def layout_of(root: Path) -> Layout | None:
    """The layout that the folder `root` has; None where it has none of these."""
    return next((layout for layout in LAYOUTS if layout.fits(root)), None)


# Files and lists.


def files_in(folder: Path) -> list[Path]:
    """The files of `folder`, sorted; hidden ones are not part of a data set.

    Raises:
        DatasetError: the folder is not there, or cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: no such folder, or it cannot be read ({error.strerror})") from error


def lines_of(path: Path, *, listing: str) -> list[str]:
    """The lines of a list that are not blank; raises DatasetError where all are. `listing`: what an entry is called."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise DatasetError(f"{path}: lists no {listing}")
    return lines


def _paired(images: Sequence[Path], labels: Sequence[Path]) -> list[LabelledFile]:
    """Images and labels of the same stems; raises DatasetError naming a file that has no partner."""
    image_of, label_of = _by_stem(images), _by_stem(labels)
    for stem in sorted(image_of.keys() ^ label_of.keys()):
        path, missing = (image_of[stem], "label") if stem in image_of else (label_of[stem], "image")
        raise DatasetError(f"{path}: there is no {missing} named '{stem}'")
    return [LabelledFile(stem, image_of[stem], label_of[stem]) for stem in sorted(image_of)]


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their names without suffix; raises DatasetError for two of one stem."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise DatasetError(f"{path}: {files[path.stem].name} has the same stem; keep one of them")
        files[path.stem] = path
    return files
