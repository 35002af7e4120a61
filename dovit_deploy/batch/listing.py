"""What do SOURCE... of a batch mean? Files, folders of images or of videos, globs, and lists of all these."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dovit_deploy import packages
from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.outputs import names_from_paths
from dovit_deploy.sources.folders import VIDEO_SUFFIXES, looks_like_image, walked_files

LIST_SUFFIX, TABLE_SUFFIX = ".txt", ".parquet"
COLUMNS = ("source", "path", "uri", "url", "file")
"""Of a Parquet list, the first of these that there is; else its only column."""
MOST_LIST_BYTES = 1 << 28


def texts_from(given: Sequence[str], *, recursive: bool) -> tuple[str, ...]:
    """The sources that are meant, each as `open_source` takes it; one that is named twice is one.

    Raises:
        SourceError: a folder, glob or list cannot be read or holds nothing.
        PackageMissing: a Parquet list, and no pyarrow.
    """
    found = [text for name in given for text in _of_name(name, recursive=recursive, listed=False)]
    return tuple(dict.fromkeys(found))


def stems_of(texts: Sequence[str], *, reserved: Collection[str] = ()) -> dict[str, str]:
    """Source -> the name of its results: its stem; where stems meet, with the suffix, then with a number.

    Args:
        texts: the sources.
        reserved: names of other files beside the results.
    """
    paths = [Path(text.rstrip("/").strip("*?[]") or "images") for text in texts]
    # A folder called "2024.05" has no suffix, and neither has a glob; only what it is called counts.
    numbered = {
        str(Path(str(number), path.name)): text for number, (path, text) in enumerate(zip(paths, texts, strict=True))
    }
    names = names_from_paths(tuple(Path(key) for key in numbered))
    stems, taken, last = dict[str, str](), set(reserved), dict[str, int]()
    for key, text in numbered.items():
        name, number = names[key], last.get(names[key], 1)
        # On from the number that the last of this name got: in an archive a folder for each camera, all may have one.
        while name in taken:
            number += 1
            name = f"{names[key]}-{number}"
        last[names[key]] = number
        taken.add(name)
        stems[text] = name
    return stems


def _of_name(name: str, *, recursive: bool, listed: bool) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from _of_folder(path, name, recursive=recursive)
    elif path.is_file() and not listed and path.suffix.lower() in (LIST_SUFFIX, TABLE_SUFFIX):
        lines = _lines(path) if path.suffix.lower() == LIST_SUFFIX else _column(path)
        if not lines:
            raise SourceError(f"{name}: this list names no source")
        for line in lines:
            yield from _of_name(line, recursive=recursive, listed=True)
    elif not path.exists() and "://" not in name and glob.has_magic(name):
        yield from _of_glob(name)
    else:
        yield name


def _of_folder(folder: Path, name: str, *, recursive: bool) -> Iterator[str]:
    """The images of a folder together, as `run` takes them, and each of its videos."""
    try:
        files = list(walked_files(folder, recursive=recursive))
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({error.strerror or error})") from error
    videos = [path for path in files if _is_video(path)]
    # Without either `open_source` says what was looked for.
    if any(looks_like_image(path) for path in files) or not videos:
        yield name
    yield from map(str, videos)


def _of_glob(pattern: str) -> Iterator[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  a pattern, not a folder
    videos = [path for path in found if _is_video(Path(path))]
    if any(looks_like_image(Path(path)) for path in found) or not videos:
        yield pattern
    yield from videos


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _lines(path: Path) -> list[str]:
    """A source a line; empty lines and those that begin with # are none."""
    try:
        if path.stat().st_size > MOST_LIST_BYTES:
            raise SourceError(f"{path}: too large for a list of sources")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise SourceError(f"{path}: cannot be read as a list of sources ({reason})") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _column(path: Path) -> list[str]:
    """The sources of a Parquet list."""
    parquet = packages.pyarrow_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            column = next((name for name in COLUMNS if name in names), names[0] if len(names) == 1 else None)
            if column is None:
                raise SourceError(f"{path}: which column names the sources? Call it one of {', '.join(COLUMNS)}")
            values = file.read([column]).column(0).to_pylist()
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    if not all(isinstance(value, str) and value for value in values):
        raise SourceError(f"{path}: its column {column} holds other things than names of sources")
    return [str(value) for value in values]
