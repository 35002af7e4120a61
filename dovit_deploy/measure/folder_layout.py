"""The package's own layout of a data set.

classes.json            {"classes": [{"id", "name", "color": [R, G, B]}, ...], "ignore": id or absent}
<split>.txt             stems, one per line
images/<split>/<stem>.* any image that Pillow reads
labels/<split>/<stem>.png  8-bit, the pixel value is the class id, as large as the image
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dovit_deploy.errors import DatasetError
from dovit_deploy.measure.labelled_files import (
    IGNORE,
    ClassList,
    LabelledFile,
    LabelledFiles,
    by_stem,
    lines_of,
    listed,
    plain_codes,
)


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
