"""A folder of images and labels: what it must look like, and every fault named with its file.

classes.json            {"classes": [{"id", "name", "color": [R, G, B]}, ...], "ignore": id or absent}
<split>.txt             stems, one per line
images/<split>/<stem>.* any image that Pillow reads
labels/<split>/<stem>.png  8-bit, the pixel value is the class id, as large as the image
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovit_deploy import packages
from dovit_deploy.errors import DatasetError

IGNORE = 255
"""Pixel value of labels that count nowhere, whatever the files call it."""


@dataclass(frozen=True)
class ClassList:
    """Names and colours of the classes 0..K-1, and which id in the files means "no class"."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int | None


@dataclass(frozen=True)
class Sample:
    """One labelled image: `rgb` (H, W, 3) uint8, `label` (H, W) uint8 with `IGNORE` where nothing is known."""

    stem: str
    rgb: NDArray[np.uint8]
    label: NDArray[np.uint8]


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
    return ClassList(names, colours, ignore)


def _colour(values: Any) -> tuple[int, int, int]:  # noqa: ANN401  parsed JSON
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {values} is not RGB in 0..255")
    return red, green, blue


class SegmentationFolder:
    """One split of a data set; images are decoded when asked for.

    Raises:
        DatasetError: a list, an image or a label is missing, or the split is empty.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = root, split
        self.classes = class_list_from_file(root / "classes.json")
        self.stems = _stems(root / f"{split}.txt")
        images = _by_stem(_listed(root / "images" / split))
        labels = root / "labels" / split
        for stem in self.stems:
            if stem not in images:
                raise DatasetError(f"{root / 'images' / split}: no image for '{stem}' of {split}.txt")
            if not (labels / f"{stem}.png").is_file():
                raise DatasetError(f"{labels / f'{stem}.png'}: missing label of '{stem}' in {split}.txt")
        self._images = [images[stem] for stem in self.stems]
        self._labels = [labels / f"{stem}.png" for stem in self.stems]

    def __len__(self) -> int:
        return len(self.stems)

    def sample(self, index: int) -> Sample:
        """Decode number `index`; raises DatasetError naming the file when it cannot be used."""
        rgb = _decoded(self._images[index], "RGB")
        label = self.label(index)
        if rgb.shape[:2] != label.shape:
            raise DatasetError(
                f"{self._labels[index]}: {label.shape[1]}x{label.shape[0]} pixels, "
                f"its image has {rgb.shape[1]}x{rgb.shape[0]}"
            )
        return Sample(self.stems[index], rgb, label)

    def label(self, index: int) -> NDArray[np.uint8]:
        """Label map number `index`, (H, W) uint8, `IGNORE` where nothing is known."""
        label = _decoded(self._labels[index], None)
        if self.classes.ignore is not None:
            label = np.where(label == self.classes.ignore, np.uint8(IGNORE), label)
        wrong = label[(label >= len(self.classes.names)) & (label != IGNORE)]
        if wrong.size:
            raise DatasetError(
                f"{self._labels[index]}: pixel value {wrong[0]}; class ids are 0..{len(self.classes.names) - 1}"
            )
        return label

    def class_frequencies(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of each class, (K,); reads every label once."""
        count = np.zeros(256, np.int64)
        for index in range(len(self)):
            count += np.bincount(self.label(index).ravel(), minlength=256)
        known = count[: len(self.classes.names)].astype(np.float64)
        if not known.sum():
            raise DatasetError(f"{self.root / 'labels' / self.split}: no labelled pixel in the whole split")
        shares: NDArray[np.float64] = known / known.sum()
        return shares


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_file())


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in paths:
        if path.stem in images:
            raise DatasetError(f"{path}: {images[path.stem].name} has the same stem; keep one of them")
        images[path.stem] = path
    return images


def _stems(path: Path) -> list[str]:
    try:
        stems = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not stems:
        raise DatasetError(f"{path}: lists no image")
    return stems


def _decoded(path: Path, mode: str | None) -> NDArray[np.uint8]:
    """Pixels of an image, converted to `mode`; without one it must be 8-bit grey or indexed, values as stored."""
    image = packages.pillow()
    try:
        with image.open(path) as opened:
            if mode is None and opened.mode not in ("L", "P"):
                raise DatasetError(f"{path}: a label must be an 8-bit grey or indexed PNG, this is {opened.mode}")
            return np.array(opened if mode is None else opened.convert(mode), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be decoded ({error})") from error
