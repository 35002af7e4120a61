"""Which images of a classifier's data set are there, and which number has the class of each?

    ROOT/<split>/<class folder>/<image>     ImageNet's layout once its validation set is sorted into folders

The classes are the folders in the order of their names, unless a list at ROOT gives another order (and names).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.dataset import read_rgb
from dovit_deploy.datasets.layouts import images_in
from dovit_deploy.datasets.split import Split, lines_of
from dovit_deploy.documents import data_from_json, read_text
from dovit_deploy.errors import DatasetError

LISTS = ("classes.json", "imagenet_class_index.json", "synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")
"""Files at ROOT that give the classes their numbers; the first that is there counts."""
LAYOUT = "ROOT/<split>/<class folder>/<image>, as ImageNet's"


@dataclass(frozen=True)
class LabelledImage:
    """An image and the number of the class that it shows."""

    stem: str
    """`<class folder>/<file name without suffix>`."""
    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    label: int


@dataclass(frozen=True)
class ClassifiedFile:
    """An image file and the number of its class."""

    path: Path
    label: int

    @property
    def stem(self) -> str:
        """`<class folder>/<file name without suffix>`."""
        return f"{self.path.parent.name}/{self.path.stem}"


@dataclass(frozen=True)
class FolderClass:
    """A class: the folder of its images, and its name where a list gives one."""

    folder: str
    name: str


class LabelledImages:
    """One split of a classifier's data set; its images come class by class, decoded when asked for.

    Raises:
        DatasetError: `files` is empty.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[ClassifiedFile],
        classes: Sequence[FolderClass],
        order: str,
        ignored: Sequence[Path] = (),
    ) -> None:
        if not files:
            raise DatasetError(f"{name}: no image")
        self.name, self.files, self.classes, self.ignored = name, tuple(files), tuple(classes), tuple(ignored)
        self.order = order
        """Where the numbers of the classes come from, for messages."""
        # These are no frames of a drive, whatever their names look like.
        self.moments: None = None

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the images with their folders."""
        return tuple(file.stem for file in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> LabelledImage:
        """Decode image number `index`; raises DatasetError naming the file when it cannot be used."""
        file = self.files[index]
        return LabelledImage(file.stem, read_rgb(file.path), file.label)

    def check(self) -> None:
        """Decode every image once; raises DatasetError naming the first that cannot be used."""
        for index in range(len(self)):
            self.sample(index)


def has_class_folders(root: Path, split: str) -> bool:
    """Whether `root` has a folder of images for each class of `split`."""
    return (root / split).is_dir() and any(images_in(folder).taken for folder in _folders(root / split))


def class_folders(root: Path, split: Split) -> LabelledImages:
    """The split of the data set at `root`.

    Raises:
        DatasetError: no such folder or split, a class folder that no list names, or no image.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such data set; the layout of a classifier's is {LAYOUT}")
    if not has_class_folders(root, split.name):
        raise DatasetError(_not_the_layout(root, split.name))
    listed = {folder.name: images_in(folder) for folder in _folders(root / split.name)}
    folders = {name: found.taken for name, found in listed.items() if found.taken}
    classes, order = _classes(root, split.name, sorted(folders))
    number = {entry.folder: label for label, entry in enumerate(classes)}
    # A list may name classes that have no images here, but no folder may go without a number.
    unknown = next((folder for folder in sorted(folders) if folder not in number), None)
    if unknown is not None:
        raise DatasetError(f"{root / split.name / unknown}: {order} does not list the class '{unknown}'")
    files = [ClassifiedFile(path, number[folder]) for folder in sorted(folders) for path in folders[folder]]
    if split.part:
        stems = [file.stem for file in files]
        files = [files[index] for index in split.indices(stems, name=f"{root} ({split.name})")]
    ignored = tuple(path for found in listed.values() for path in found.ignored)
    return LabelledImages(f"{root} ({split.text})", files, classes, order, ignored)


def _not_the_layout(root: Path, split: str) -> str:
    """What is wrong, and the splits that are there."""
    splits = ", ".join(folder.name for folder in _folders(root) if has_class_folders(root, folder.name))
    if splits:
        return f"{root / split}: no such split, or no image in its class folders; splits here: {splits}"
    return f"{root}: no class folders with images in '{split}'; the layout of a classifier's data set is {LAYOUT}"


def _classes(root: Path, split: str, folders: Sequence[str]) -> tuple[list[FolderClass], str]:
    """The classes in the order of their numbers, and where that order comes from."""
    # A list at ROOT takes precedence: a network trained on all of ImageNet counts classes that a part of it lacks.
    path = next((root / name for name in LISTS if (root / name).is_file()), None)
    if path is None:
        return [FolderClass(folder, folder) for folder in folders], f"the order of the folders in {root / split}"
    classes = _classes_from_json(path) if path.suffix == ".json" else _classes_from_lines(path)
    if len({entry.folder for entry in classes}) < len(classes):
        raise DatasetError(f"{path}: lists a class twice")
    return classes, str(path)


def _classes_from_json(path: Path) -> list[FolderClass]:
    """A list of folders, or an index from "0", "1", ... to a folder, or to a folder and a name."""
    wrong = DatasetError(
        f"{path}: neither a list of class folders nor an index as "
        '{"0": ["n01440764", "tench"], ...}; without the file the folders count in the order of their names'
    )
    try:
        content = data_from_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of classes ({error})") from error
    if isinstance(content, dict):
        # JSON has no integer keys, and "10" sorts before "2": each number is looked up.
        if content.keys() != {str(number) for number in range(len(content))}:
            raise wrong
        content = [content[str(number)] for number in range(len(content))]
    if not isinstance(content, list) or not content:
        raise wrong
    classes = []
    for entry in content:
        parts = entry if isinstance(entry, list) else [entry]
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) and part for part in parts):
            raise wrong
        classes.append(FolderClass(parts[0], parts[-1]))
    return classes


def _classes_from_lines(path: Path) -> list[FolderClass]:
    """A line for each class: the folder, then the name or nothing."""
    # As in "n01440764 tench, Tinca tinca"; without a name the folder stands for it.
    parts = [line.split(maxsplit=1) for line in lines_of(path, listing="class")]
    return [FolderClass(part[0], part[-1]) for part in parts]


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`, sorted; hidden ones are not part of a data set."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{parent}: cannot be read ({error.strerror})") from error
