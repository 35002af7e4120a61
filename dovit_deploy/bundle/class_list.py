"""What the classes are called and how they are painted: read from a file, or generated."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Sequence
from pathlib import Path

from dovit_deploy.bundle.manifest import ClassEntry, Manifest
from dovit_deploy.errors import ConfigError, InputError

SYNSET = re.compile(r"(n\d{8})(?:\s+(.*\S))?\s*")
"""A line of ImageNet's lists: WordNet's number, then the words."""


def classes_from_file(path: Path) -> tuple[ClassEntry, ...]:
    """Read `--classes`.

    Text: one name a line, in front of it ImageNet's number (`n01440764 tench`) or not. JSON: a list of names;
    `{"classes": [...], "palette": [...]}`; or ImageNet's index, `{"0": ["n01440764", "tench"], ...}` or
    `{"0": "tench", ...}`.

    Raises:
        InputError: there is no such file, or it is none of these.
    """
    if not path.is_file():
        raise InputError(f"no class list at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        parsed: object = json.loads(text) if path.suffix == ".json" else _names_from_lines(text)
    except (ValueError, PermissionError) as error:
        raise InputError(f"the class list {path} cannot be read: {error}") from error
    contents = parsed if isinstance(parsed, dict) else {"classes": parsed}
    names, colors = contents.get("classes", _names_from_index(contents)), contents.get("palette")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the class list {path.name} is neither one name a line nor JSON with a list of names")
    names = [name for name in names if name]
    if not names or not isinstance(colors, list | None):
        raise InputError(f"the class list {path.name} names no classes, or its 'palette' is no list")
    return entries_from_lists(names, colors, len(names), InputError)


def _names_from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
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


def entries_from_lists(
    names: Sequence[object] | None,
    colors: Sequence[object] | None,
    count: int,
    kind: type[ConfigError] | type[InputError],
) -> tuple[ClassEntry, ...]:
    """Classes of the given names and colours, or of generated ones where None."""
    for what, values in (("class names", names), ("colours", colors)):
        if values is not None and len(values) != count:
            raise kind(f"{len(values)} {what} for a network of {count} classes")
    painted = generated_palette(count) if colors is None else [_color(value, kind) for value in colors]
    named = [f"class_{number}" for number in range(count)] if names is None else [str(name) for name in names]
    return tuple(ClassEntry(name=name, color=color) for name, color in zip(named, painted, strict=True))


def check_number(given: Sequence[ClassEntry], count: int) -> tuple[ClassEntry, ...]:
    """The classes of `--classes`; raises InputError when they are not `count`."""
    if len(given) != count:
        raise InputError(f"--classes names {len(given)} classes; the network has {count}: give one name for each")
    return tuple(given)


def renamed(manifest: Manifest, given: Sequence[ClassEntry]) -> Manifest:
    """The same manifest with the classes of `--classes`; raises InputError for a wrong number of them."""
    return manifest.model_copy(update={"classes": check_number(given, len(manifest.classes))})


def _color(value: object, kind: type[ConfigError] | type[InputError]) -> tuple[int, int, int]:
    if isinstance(value, list | tuple) and len(value) == 3 and all(_byte(part) for part in value):
        return int(value[0]), int(value[1]), int(value[2])
    raise kind(f"{value!r} is no colour; red, green and blue of 0 to 255 are needed")


def _byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def generated_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` colours that are easy to tell apart, always the same.

    The golden ratio spreads hues evenly for any count; brightness alternates so that near hues differ.
    """
    palette = []
    for number in range(count):
        hue = (0.08 + number * 0.618034) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.75)[number % 3], (0.95, 0.8, 0.6)[number % 3])
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return palette
