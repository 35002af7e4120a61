"""How is JSON, YAML or TOML from outside read? As plain data of bounded depth and extent, or refused in one short line.

A few hundred bytes can nest without end, repeat themselves a billion times by aliases, or write a number whose
conversion takes minutes. What passes here is safe to walk, to copy and to print shortened.
"""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dovit_deploy import packages
from dovit_deploy.errors import shown

DEEPEST = 50
"""Levels inside each other; no file of ours or of other projects goes deeper than ten."""
MOST_VALUES = 500_000
"""Numbers, texts and containers, each counted as often as it would be written out."""
MOST_BYTES = 2**23
"""Of a text; the largest that are read, lists of all of ImageNet's classes, have one or two million."""
MOST_BYTES_OF_YAML = 2**20
"""Its parser is a hundred times slower than JSON's."""
MOST_DIGITS = 400
"""Of a whole number: the largest floating point number has 309."""


class NotData(ValueError):
    """The text is not of its format, or goes beyond the bounds; the message is one short line."""


def bytes_of_document(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The content of a file that is no longer than `most` bytes; of a longer one no more than that is read.

    Raises:
        OSError: it cannot be read.
        NotData: it is longer.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotData(f"it is longer than the {most:,} bytes that are read")
    return content


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file, with or without the byte order mark that Windows writes; lines end in "\\n".

    Args:
        path: the file.
        most: bytes that are read.

    Raises:
        OSError: it cannot be read.
        NotData: it is longer.
        UnicodeDecodeError: it is no UTF-8; UTF-16 and UTF-32 are called so.
    """
    content = bytes_of_document(path, most=most)
    start = content[:4]
    # Also without a mark, every second byte of plain text is zero in UTF-16.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise UnicodeDecodeError("utf-8", start, 0, len(start), "the text is UTF-16 or UTF-32; save it as UTF-8")
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()


def data_from_json(text: str | bytes) -> object:
    """The contents of a JSON text.

    Raises:
        NotData: it is no JSON, or beyond the bounds above.
    """
    _check_length(text, MOST_BYTES)
    with _faults(ValueError):
        value: object = json.loads(text, parse_int=_whole_number)
    check_extent(value)
    return value


def data_from_toml(text: str) -> dict[str, object]:
    """The contents of a TOML text.

    Raises:
        NotData: it is no TOML, or beyond the bounds above.
    """
    _check_length(text, MOST_BYTES_OF_YAML)
    with _faults(ValueError):
        value = tomllib.loads(text)
    check_extent(value)
    return value


def data_from_yaml(text: str) -> object:
    """The contents of a YAML text, its tuples (`!!python/tuple`, as Segmenter writes them) as lists; no other objects.

    Raises:
        NotData: it is no YAML, or beyond the bounds above.
        PackageMissing: PyYAML is not installed.
    """
    _check_length(text, MOST_BYTES_OF_YAML)
    yaml = packages.load("yaml")
    # A class of its own, because constructors are registered on the class and would change every other safe loader.
    kind: Any = type("TupleLoader", (yaml.SafeLoader,), {})
    kind.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_sequence)
    # PyYAML's own constructors stumble over odd dates, numbers and keys.
    with _faults(yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # Before values are made of it: merge keys (`<<: *a`) copy what they name.
        _Extent(_parts_of_node).check(node)
        value: object = loader.construct_document(node)
    return value


def check_extent(value: object) -> None:
    """Raise NotData where `value`, data that was read from a text, nests too deep or would be too long written out."""
    _Extent(_parts_of_value).check(value)


def fault_of(error: ValidationError, *, with_value: bool = False) -> str:
    """The first complaint about a record in one short line: "spec.width: Input should be greater than 0".

    Args:
        error: what pydantic raised.
        with_value: also what was given.
    """
    first = error.errors(include_url=False)[0]
    field = ".".join(shown(part) for part in first["loc"])
    text = f"{field}: " if field else ""
    text += shown(first["msg"].removeprefix("Value error, "))
    # A section as a whole would say less than its name.
    if with_value and field and not isinstance(first["input"], dict):
        text += f" ({shown(first['input'], quoted=True)} given)"
    return text


def _check_length(text: str | bytes, most: int) -> None:
    if len(text) > most:
        raise NotData(f"it is {len(text):,} bytes long; at most {most:,} are read")


@contextmanager
def _faults(*kinds: type[Exception]) -> Iterator[None]:
    """What a parser raises for a text, of these kinds or for its depth, as NotData."""
    try:
        yield
    except NotData:
        raise
    except RecursionError as error:
        raise NotData(_too_deep()) from error
    except kinds as error:
        raise NotData(_one_line(error)) from error


def _too_deep() -> str:
    return f"it nests more than {DEEPEST} levels"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise NotData(f"it holds a number of {len(digits):,} digits")
    return int(digits)


_PLAIN = frozenset({str, int, float, bool, type(None)})


class _Extent:
    """Counts what a value would be when written out; what is referred to twice is looked at once."""

    def __init__(self, parts: Callable[[Any], Iterable[Any]]) -> None:
        self._parts = parts
        self._seen: dict[int, tuple[int, int]] = {}

    def check(self, value: object) -> None:
        self._measured(value, DEEPEST)

    def _measured(self, value: object, left: int) -> tuple[int, int]:
        """Number of values, and levels below."""
        known = self._seen.get(id(value), (0, 0))
        # A value within itself is met again and again, and ends here too.
        if left < known[1]:
            raise NotData(_too_deep())
        if known[0]:
            return known
        count, height = 1, 0
        for part in self._parts(value):
            # Most values hold no others, and there may be a million of them.
            if type(part) in _PLAIN:
                count += 1
                continue
            if left == 0:
                raise NotData(_too_deep())
            below = self._measured(part, left - 1)
            count, height = count + below[0], max(height, below[1] + 1)
            if count > MOST_VALUES:
                break
        if count > MOST_VALUES:
            raise NotData(f"written out it holds more than {MOST_VALUES:,} values")
        if height:
            self._seen[id(value)] = (count, height)
        return count, height


def _parts_of_value(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _parts_of_node(node: Any) -> Iterable[Any]:  # noqa: ANN401  PyYAML has no types
    if not isinstance(node.value, list):
        return ()
    return (part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,)))
