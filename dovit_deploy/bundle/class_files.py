"""Which classes does a file list that `--classes` names, and in which order are the classes of a data set?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dovit_deploy.bundle.manifest import ClassEntry, entries_from_lists
from dovit_deploy.documents import data_from_json, read_text
from dovit_deploy.errors import InputError

SYNSET = re.compile(r"(n\d{8})(?:\s+(.*\S))?\s*")
"""A line of ImageNet's lists: WordNet's number, then the words."""


def classes_from_file(path: Path) -> tuple[ClassEntry, ...]:
    """Read `--classes`.

    Text: one name a line, in front of it ImageNet's number (`n01440764 tench`) or not. JSON: a list of names, or of
    folders with their names; `{"classes": [...], "palette": [...]}`; a data set's own
    `{"classes": [{"id": 0, "name": "sky", "color": [1, 2, 3]}, ...], "ignore": 255}`; or ImageNet's index,
    `{"0": ["n01440764", "tench"], ...}` or `{"0": "tench", ...}`.

    Raises:
        InputError: there is no such file, or it is none of these.
    """
    if not path.is_file():
        raise InputError(f"no class list at {path}")
    try:
        text = read_text(path)
        parsed = data_from_json(text) if path.suffix == ".json" else _names_from_lines(text)
    except (ValueError, OSError) as error:
        raise InputError(f"the class list {path} cannot be read: {error}") from error
    contents = parsed if isinstance(parsed, dict) else {"classes": parsed}
    names, colors = contents.get("classes", _names_from_index(contents)), contents.get("palette")
    if isinstance(names, list) and names and all(isinstance(entry, dict) for entry in names):
        names, colors = _of_data_set(names, contents.get("ignore"), path)
    if isinstance(names, list):
        # [folder, name], as a data set of class folders lists them.
        names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the class list {path.name} is neither one name a line nor JSON with a list of names")
    names = [name for name in names if name]
    if not names or not isinstance(colors, list | None):
        raise InputError(f"the class list {path.name} names no classes, or its 'palette' is no list")
    return entries_from_lists(names, colors, len(names), InputError)


def _of_data_set(
    entries: list[dict[str, object]], ignore: object, path: Path
) -> tuple[list[object], list[object] | None]:
    """Names and colours of a data set's classes in the order of their ids; no colours unless each class has one."""
    # In a list without ids the order counts.
    order = order_of_ids([entry.get("id", number) for number, entry in enumerate(entries)], ignore)
    if order is None:
        raise InputError(
            f"the class list {path.name}: its ids must be 0, 1, 2, ... (1, 2, ... where 0 is ignored) once each, "
            "without gaps"
        )
    ordered = [entries[position] for position in order]
    colors = [entry.get("color") for entry in ordered]
    return [entry.get("name") for entry in ordered], None if None in colors else colors


def order_of_ids(ids: Sequence[object], ignore: object) -> list[int] | None:
    """The positions of a data set's classes in the order of their `ids`, that of the ignored id left out.

    Ids count from 0; from 1 where 0 is ignored. None: they leave gaps, or some stand twice.
    """
    # A bool is an int in Python.
    numbers = [(number, position) for position, number in enumerate(ids) if type(number) is int and number != ignore]
    others = sum(type(number) is not int for number in ids)
    ordered, first = sorted(numbers), int(ignore == 0)
    if others or [number for number, _ in ordered] != list(range(first, first + len(ordered))):
        return None
    return [position for _, position in ordered]


def _names_from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Only where every line has a number is it one of ImageNet's lists.
    matches = [SYNSET.fullmatch(line) for line in lines]
    if not all(matches):
        return lines
    return [match[2] or match[1] for match in matches if match]


def _names_from_index(contents: dict[str, object]) -> list[object] | None:
    """The names of an index from "0", "1", ... to a name, or to WordNet's number and a name; None where it is none."""
    if not contents or contents.keys() != {str(number) for number in range(len(contents))}:
        return None
    entries = [contents[str(number)] for number in range(len(contents))]
    return [entry[-1] if isinstance(entry, list) and entry else entry for entry in entries]
