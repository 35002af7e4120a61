"""Where are the files of a data set of label maps, and what do its numbers mean? One entry of `LAYOUTS` a layout.

our own     classes.json, <split>.txt            stems, one per line
            images/<split>/<stem>.*              labels/<split>/<stem>.png: the pixel value is the class id
Cityscapes  leftImg8bit/<split>/<city>/<stem>_leftImg8bit.png
            gtFine/<split>/<city>/<stem>_gtFine_labelIds.png
ADE20K      images/training/<stem>.jpg           annotations/training/<stem>.png; validation likewise (or train, val)
            objectInfo150.txt                    names of the classes, where it is kept
CamVid      train/<stem>.png                     trainannot/<stem>.png; the same for val and test
            train.txt                            where it is kept: a path of an image and one of its label map per line

A classes.json in the folder says what the numbers mean, whatever the layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dovit_deploy.datasets.class_lists import CLASSES, Colour, colour_of_number, labelling_from_file
from dovit_deploy.datasets.dataset import (
    IGNORE,
    ClassList,
    LabelCodes,
    LabelledFile,
    Labelling,
    Listing,
    plain_codes,
)
from dovit_deploy.datasets.recording import CITYSCAPES_RATE, RecordingRate
from dovit_deploy.datasets.split import lines_of
from dovit_deploy.errors import DatasetError
from dovit_deploy.runtime.cityscapes import CITYSCAPES_CLASSES
from dovit_deploy.sources.folders import walked_files
from dovit_deploy.sources.images import IMAGE_SUFFIXES

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
"""Of label files, in any case; JPEG among them so that it is refused by its name and not called missing."""


# Our own: classes.json says what the pixel values mean, a list gives the order and may leave out files that are there.


def own_files(root: Path, split: str) -> Listing:
    """The split of a folder in our own layout.

    Raises:
        DatasetError: a list, an image or a label is missing, a stem is listed twice, or the split is empty.
    """
    text = root / f"{split}.txt"
    if not text.is_file():
        known = ", ".join(sorted(path.stem for path in root.glob("*.txt"))) or "none"
        raise DatasetError(f"{text}: cannot be read, it is not there; splits here: {known}")
    stems = lines_of(text, listing="image")
    images, labels = images_in(root / "images" / split), labels_in(root / "labels" / split)
    image_of, label_of = _by_stem(images.taken), _by_stem(labels.taken)
    ignored = images.ignored + labels.ignored
    files = tuple(_own_file(root, split, stem, image_of, label_of, ignored) for stem in stems)
    twice = next((stem for stem, times in Counter(stems).items() if times > 1), None)
    if twice is not None:
        raise DatasetError(f"{text}: lists '{twice}' twice")
    return Listing(files, ignored)


def _own_file(
    root: Path, split: str, stem: str, images: dict[str, Path], labels: dict[str, Path], ignored: Sequence[Path]
) -> LabelledFile:
    if stem not in images:
        folder = root / "images" / split
        raise DatasetError(f"{folder}: no image for '{stem}' of {split}.txt{_near(folder, stem, ignored)}")
    if stem not in labels:
        folder = root / "labels" / split
        where = folder / f"{stem}.png"
        raise DatasetError(f"{where}: missing label of '{stem}' in {split}.txt{_near(folder, stem, ignored)}")
    return LabelledFile(stem, images[stem], labels[stem])


def _own_labelling(root: Path) -> Labelling:
    """Raises DatasetError where the list of classes is absent or faulty."""
    path = root / CLASSES
    if not path.exists():
        raise DatasetError(f"{path}: missing; list the classes of the label maps there, or give a list with --classes")
    return labelling_from_file(path)


def own_splits(root: Path) -> set[str]:
    """The splits that something is called after: a folder, or a list."""
    folders = _folder_names(root / "images") | _folder_names(root / "labels")
    return folders | {path.stem for path in root.glob("*.txt")}


# Cityscapes: label ids become train ids, everything else is void.

CITYSCAPES_IMAGES, CITYSCAPES_LABELS = "leftImg8bit", "gtFine"
IMAGE_END, LABEL_END = "_leftImg8bit.png", "_gtFine_labelIds.png"

HIGHEST_LABEL_ID = 33


def cityscapes_files(root: Path, split: str) -> Listing:
    """The split of the folder `root`, city by city.

    Raises:
        DatasetError: no such split, or an image without label or the other way round.
    """
    _refuse_absent(root, split, cityscapes_splits(root))
    # Stems are unique within a city only.
    images, foreign = _by_city(root / CITYSCAPES_IMAGES / split, IMAGE_END)
    labels, others = _by_city(root / CITYSCAPES_LABELS / split, LABEL_END)
    for city, stem in sorted(images.keys() ^ labels.keys()):
        image = images.get((city, stem))
        path, missing = (image, "label") if image is not None else (labels[city, stem], "image")
        raise DatasetError(f"{path}: it has no {missing} ({city}/{stem}, split {split})")
    files = tuple(LabelledFile(key[1], images[key], labels[key]) for key in sorted(images))
    # Each image has several kinds of annotation, of which one is read; the others are no foreign files.
    foreign += tuple(path for path in others if f"_{CITYSCAPES_LABELS}_" not in path.name)
    return Listing(files, foreign)


def _by_city(folder: Path, end: str) -> tuple[dict[tuple[str, str], Path], tuple[Path, ...]]:
    """Files of a split by (city, stem), and the files that are called otherwise."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    # The suffix in any case: some tools write ".PNG".
    found = {path: path.name.lower().endswith(end.lower()) for path in sorted(folder.glob("*/*"))}
    named = {(path.parent.name, path.name[: -len(end)]): path for path, fits in found.items() if fits}
    return named, tuple(path for path, fits in found.items() if not fits and path.is_file())


def cityscapes_splits(root: Path) -> set[str]:
    """The splits that something is called after."""
    return _folder_names(root / CITYSCAPES_IMAGES) | _folder_names(root / CITYSCAPES_LABELS)


def _cityscapes_labelling(root: Path) -> Labelling:
    del root
    _, names, colours = zip(*CITYSCAPES_CLASSES, strict=True)
    return Labelling(ClassList(names, colours, None), _cityscapes_codes())


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


def ade20k_files(root: Path, split: str) -> Listing:
    """The split (train, val, or the folder's own name) of the folder `root`.

    Raises:
        DatasetError: no such split, or an image without label or the other way round.
    """
    folder = split if split in _ade20k_folders(root) else ADE20K_SPLITS.get(split, split)
    _refuse_absent(root, folder, _ade20k_folders(root))
    return _paired(images_in(root / "images" / folder), labels_in(root / "annotations" / folder))


def _ade20k_folders(root: Path) -> set[str]:
    return _folder_names(root / "images") | _folder_names(root / "annotations")


def ade20k_splits(root: Path) -> set[str]:
    """The splits that something is called after, by their short names where they have one."""
    short = {folder: name for name, folder in ADE20K_SPLITS.items()}
    return {short.get(folder, folder) for folder in _ade20k_folders(root)}


def _ade20k_labelling(root: Path) -> Labelling:
    """Raises DatasetError for a faulty list of names."""
    palette = tuple(colour_of_number(number + 1) for number in range(ADE20K_CLASSES))
    return Labelling(ClassList(_ade20k_names(root), palette, 0), _ade20k_codes())


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


def camvid_files(root: Path, split: str) -> Listing:
    """The split of the folder `root`, in the order of its list where there is one.

    Raises:
        DatasetError: no such split, an image without label or the other way round, or a list that names no pairs.
    """
    text = root / f"{split}.txt"
    if text.is_file():
        return Listing(tuple(_camvid_file(root, text, line) for line in lines_of(text, listing="image")))
    _refuse_absent(root, split, camvid_splits(root))
    return _paired(images_in(root / split), labels_in(root / f"{split}{CAMVID_LABELS}"))


def camvid_splits(root: Path) -> set[str]:
    """The splits that something is called after: a folder of labels, or a list."""
    labelled = {name.removesuffix(CAMVID_LABELS) for name in _folder_names(root) if name.endswith(CAMVID_LABELS)}
    return labelled | {path.stem for path in root.glob("*.txt")}


def _camvid_labelling(root: Path) -> Labelling:
    del root
    names, colours = zip(*CAMVID_CLASSES, strict=True)
    return Labelling(ClassList(names, colours, CAMVID_VOID), plain_codes(len(names), CAMVID_VOID))


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
    splits: Callable[[Path], set[str]]
    """The splits that something in such a folder is called after, whether they are complete or not."""
    files: Callable[[Path, str], Listing]
    """The split of such a folder."""
    labelling: Callable[[Path], Labelling]
    """What the numbers in its label files mean, where no classes.json says so."""
    frame_rate: RecordingRate | None = None
    """Where no classes.json states it; None: unknown."""


ADE20K = "ADE20K"

LAYOUTS = (
    Layout(
        "classes.json with images/ and labels/",
        lambda root: (root / "labels").is_dir() and ((root / CLASSES).is_file() or (root / "images").is_dir()),
        own_splits,
        own_files,
        _own_labelling,
    ),
    Layout(
        "Cityscapes",
        lambda root: (root / CITYSCAPES_IMAGES).is_dir() and (root / CITYSCAPES_LABELS).is_dir(),
        cityscapes_splits,
        cityscapes_files,
        _cityscapes_labelling,
        RecordingRate(CITYSCAPES_RATE),
    ),
    Layout(
        ADE20K,
        lambda root: (root / "images").is_dir() and (root / "annotations").is_dir(),
        ade20k_splits,
        ade20k_files,
        _ade20k_labelling,
        RecordingRate(None),
    ),
    Layout("CamVid (SegNet's)", _has_camvid_folders, camvid_splits, camvid_files, _camvid_labelling),
)
"""The first that fits is taken; our own comes first, since a classes.json is the surest sign."""


def layout_of(root: Path) -> Layout | None:
    """The layout that the folder `root` has; None where it has none of these."""
    return next((layout for layout in LAYOUTS if layout.fits(root)), None)


# Files and lists.


def _refuse_absent(root: Path, split: str, splits: Collection[str]) -> None:
    """Raise DatasetError, with the splits that are there, where nothing is called `split`."""
    if split not in splits:
        raise DatasetError(f"{root}: no split '{split}'; splits here: {', '.join(sorted(splits)) or 'none'}")


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder that are wanted, and the others; both sorted."""

    taken: tuple[Path, ...]
    ignored: tuple[Path, ...]


def images_in(folder: Path, *, recursive: bool = False) -> FolderFiles:
    """The images of `folder`, `recursive` also of those below it; raises DatasetError where it cannot be read."""
    return _files_in(folder, IMAGE_SUFFIXES, recursive=recursive)


def labels_in(folder: Path) -> FolderFiles:
    """The label files of `folder`; raises DatasetError where it is not there, or cannot be read."""
    return _files_in(folder, LABEL_SUFFIXES)


def _files_in(folder: Path, suffixes: Collection[str], *, recursive: bool = False) -> FolderFiles:
    try:
        # A link to nothing is a file that is missing, which whoever reads it says.
        found = walked_files(folder, recursive=recursive)
        files = sorted(path for path in found if path.is_file() or _leads_nowhere(path))
    except OSError as error:
        raise DatasetError(f"{folder}: no such folder, or it cannot be read ({error.strerror})") from error
    # Hidden files are other programs' notes, also such that are called ".0001.png".
    taken = tuple(path for path in files if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return FolderFiles(taken, tuple(sorted(set(files) - set(taken))))


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _folder_names(parent: Path) -> set[str]:
    """Names of the folders in `parent`, hidden ones left out; none where it is not there."""
    try:
        return {path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError:
        return set()


def _paired(images: FolderFiles, labels: FolderFiles) -> Listing:
    """Images and labels of the same stems; raises DatasetError naming a file that has no partner."""
    image_of, label_of = _by_stem(images.taken), _by_stem(labels.taken)
    for stem in sorted(image_of.keys() ^ label_of.keys()):
        path, missing, others = (
            (image_of[stem], "label", labels) if stem in image_of else (label_of[stem], "image", images)
        )
        raise DatasetError(f"{path}: there is no {missing} named '{stem}'{_near(None, stem, others.ignored)}")
    files = tuple(LabelledFile(stem, image_of[stem], label_of[stem]) for stem in sorted(image_of))
    return Listing(files, images.ignored + labels.ignored)


def _near(folder: Path | None, stem: str, ignored: Sequence[Path]) -> str:
    """What to say of a file of this stem (in `folder`) that was passed over for its suffix."""
    for path in ignored:
        if path.stem == stem and folder in (None, path.parent):
            return f"; {path.name} is not read for its suffix '{path.suffix}': save it as PNG"
    return ""


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their names without suffix; raises DatasetError for two of one stem."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise DatasetError(f"{path}: {files[path.stem].name} has the same stem; keep one of them")
        files[path.stem] = path
    return files
