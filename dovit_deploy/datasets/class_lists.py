"""Which classes does a file list, and which pixel values of label maps are they?

    {"classes": [{"id": 0, "name": "road", "color": [128, 64, 128]}, ...], "ignore": 11}     classes.json
    {..., "frame_rate": 30}     frames that the numbers at the end of stems count in a second; null: independent images
    ["road", "car"]    or a text file with one name per line                                 ids 0, 1, ... in order

Colours may be left out, and are made then. Ids count from 0; from 1 where 0 is ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dovit_deploy.bundle.class_files import order_of_ids
from dovit_deploy.datasets.dataset import IGNORE, ClassList, Labelling, plain_codes
from dovit_deploy.datasets.recording import RecordingRate
from dovit_deploy.documents import data_from_json, read_text
from dovit_deploy.errors import DatasetError, shown

CLASSES = "classes.json"
"""In the folder of a data set: its own classes, whatever its layout."""

RATE = "frame_rate"

Colour = tuple[int, int, int]


def labelling_from_file(path: Path) -> Labelling:
    """Read a list of classes.

    Raises:
        DatasetError: it is absent, lists no class, its ids are not 0..K-1 once the ignored one is left out (1..K where
            0 is ignored), or its frame rate is none.
    """
    try:
        text = read_text(path)
        lines = [line for line in text.splitlines() if line.strip()]
        content: Any = data_from_json(text) if _is_json(path, text) else lines
        ignore = content.get("ignore") if isinstance(content, dict) else None
        listed = content["classes"] if isinstance(content, dict) else content
        classes = [_class(number, entry) for number, entry in enumerate(listed)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of classes ({_reason(error)})") from error
    if not (ignore is None or (type(ignore) is int and 0 <= ignore <= IGNORE)):
        raise DatasetError(f"{path}: 'ignore' is {shown(ignore, quoted=True)}; it must be a pixel value, 0 to {IGNORE}")
    ids, first = [label_id for label_id, _, _ in classes], int(ignore == 0)
    order = order_of_ids(ids, ignore)
    # 255 must stay free: it is what "ignore" becomes in label maps.
    if not order or first + len(order) > IGNORE:
        listed = sorted(label_id for label_id in ids if label_id != ignore)
        raise DatasetError(
            f"{path}: class ids are {shown(str(listed))}; "
            f"they must be {first}, {first + 1}, ... without gaps, below {IGNORE}"
        )
    names = tuple(classes[position][1] for position in order)
    colours = tuple(classes[position][2] for position in order)
    codes = plain_codes(len(names), ignore, first=first)
    return Labelling(ClassList(names, colours, ignore), codes, path, _frame_rate(path, content))


def _frame_rate(path: Path, content: Any) -> RecordingRate | None:  # noqa: ANN401  parsed JSON
    """What the file states; None where it says nothing."""
    if not isinstance(content, dict) or RATE not in content:
        return None
    value = content[RATE]
    if value is None:
        return RecordingRate(None)
    # A truth value is a number to Python; NaN is above nothing.
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise DatasetError(
            f"{path}: '{RATE}' is {shown(value, quoted=True)}; it must be frames a second, above 0, "
            "or null for images that are independent"
        )
    return RecordingRate(float(value))


def _is_json(path: Path, text: str) -> bool:
    return path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "["))


def _class(number: int, entry: Any) -> tuple[int, str, Colour]:  # noqa: ANN401  parsed JSON
    """Id, name and colour of an entry: a name alone, or a dictionary."""
    if isinstance(entry, str):
        return number, entry.strip(), colour_of_number(number + 1)
    label_id = entry["id"]
    if type(label_id) is not int:
        raise TypeError(f"id {shown(label_id, quoted=True)} is no whole number")
    colour = entry.get("color")
    return label_id, str(entry["name"]), colour_of_number(label_id + 1) if colour is None else _colour(colour)


def _colour(values: Any) -> Colour:  # noqa: ANN401  parsed JSON
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {shown(values, quoted=True)} is not RGB in 0..255")
    return red, green, blue


def colour_of_number(number: int) -> Colour:
    """A colour of its own for each number: its bits dealt to red, green and blue in turn (Pascal VOC's colour map)."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
