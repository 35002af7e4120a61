"""Which images lie in a folder, in the folders below it, or behind a glob? If none: where were some seen?"""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dovit_deploy.errors import SourceError
from dovit_deploy.sources.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    {
        ".3gp",
        ".avi",
        ".flv",
        ".gif",
        ".h264",
        ".hevc",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
        ".y4m",
    }
)

MOST_LOOKED_AT = 10_000
"""Files that are looked at for the message about an empty folder, which may be the root of a disk."""
MOST_NAMED = 3
"""Folders that this message names."""


def walked_files(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """The files of `folder` by name, then, where `recursive`, those of each folder in it, in the same way.

    Every folder is entered once: of those in `folder` under their own names, of others that links lead to under the
    first such link. Hidden folders are left out.
    """
    yield from _walked(folder, recursive=recursive, home=folder.resolve(), entered=set())


def _walked(folder: Path, *, recursive: bool, home: Path, entered: set[Path]) -> Iterator[Path]:
    entered.add(folder.resolve())
    entries = sorted(folder.iterdir())
    yield from (entry for entry in entries if not entry.is_dir())
    for entry in entries if recursive else ():
        if entry.is_dir() and _may_enter(entry, home, entered):
            yield from _walked(entry, recursive=True, home=home, entered=entered)


def _may_enter(folder: Path, home: Path, entered: set[Path]) -> bool:
    # What may not be read is passed over, as `find` does; the folder that the user named is an error.
    if folder.name.startswith(".") or not os.access(folder, os.R_OK | os.X_OK):
        return False
    real = folder.resolve()
    # Found under its own name in any case; and a link to a folder above would lead round for ever.
    return real not in entered and not (folder.is_symlink() and real.is_relative_to(home))


def images_of_folder(folder: Path, *, recursive: bool) -> list[Path]:
    """The images of `folder` in the order of `walked_files`.

    Raises:
        SourceError: there is none, with where some were seen; or the folder cannot be read.
    """
    try:
        paths = [path for path in walked_files(folder, recursive=recursive) if looks_like_image(path)]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if not paths:
        where = f"{folder}: no image in this folder{' or below it' if recursive else ''}"
        raise SourceError(f"{where}; {seen_instead(folder) or f'looked for {suffixes()}'}")
    return paths


def images_matching(pattern: str) -> list[Path]:
    """The images that a glob matches, by name; raises SourceError where there is none."""
    found = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207  a pattern, not a folder
    paths = sorted(path for path in found if looks_like_image(path))
    if not paths:
        why = f"none of the {len(found)} files it matches is an image" if found else "it matches nothing"
        raise SourceError(f"{pattern}: {why}; looked for {suffixes()}")
    return paths


def looks_like_image(path: Path) -> bool:
    """Whether a path is called as images are, and is a file or a link to nothing."""
    # Hidden files are other programs' notes ("._photo.jpg"), not images.
    # A link to nothing is an image that is missing, which its reader says.
    there = path.is_file() or (path.is_symlink() and not path.exists())
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and there


def seen_instead(folder: Path) -> str | None:
    """What to use instead of a folder without images: those in folders below it, or videos; None where it has none."""
    images: Counter[str] = Counter()
    videos = []
    # What cannot be read here is no error: nobody asked for it.
    with suppress(OSError):
        for path in itertools.islice(walked_files(folder, recursive=True), MOST_LOOKED_AT):
            if path.parent != folder and looks_like_image(path):
                images[path.parent.relative_to(folder).as_posix()] += 1
            elif path.parent == folder and path.suffix.lower() in VIDEO_SUFFIXES:
                videos.append(path.name)
    if images:
        named = [f"{count} {'image' if count == 1 else 'images'} in {name}/" for name, count in images.items()]
        more = [f"{len(named) - MOST_NAMED} more folders"] if len(named) > MOST_NAMED else []
        return f"{', '.join([*named[:MOST_NAMED], *more])}: add --recursive, or give that folder"
    return f"a video is given by its own name, as {folder / videos[0]}" if videos else None


def suffixes() -> str:
    """The suffixes of images, for messages."""
    return " ".join(sorted(IMAGE_SUFFIXES))
