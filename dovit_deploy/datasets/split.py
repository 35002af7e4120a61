"""Which samples of a data set does a split name take, and how is a list of them read?

NAME              the whole split
NAME:PREFIX       the samples whose stems start so: one drive, one city
NAME:-PREFIX      all but those
NAME:@LIST.txt    the samples whose stems the file lists, one a line
NAME:-@LIST.txt   all but those
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.documents import read_text
from dovit_deploy.errors import DatasetError

MOST_BYTES_OF_LIST = 2**28
"""Of a list of a data set; that of ImageNet's 1.3 million images has 50 MB."""

FORMS = "NAME, NAME:PREFIX, NAME:-PREFIX, NAME:@LIST.txt or NAME:-@LIST.txt"


@dataclass(frozen=True)
class Split:
    """What a user calls a part of a data set."""

    text: str
    """As the user wrote it."""
    name: str
    part: str
    """A prefix of stems, or @ and the list's path; empty for the whole split."""
    without: bool
    """All but the samples that `part` names."""
    listed: frozenset[str] | None = None
    """The stems in the list; None: `part` is a prefix."""

    def takes(self, stem: str) -> bool:
        """Whether the sample called `stem` belongs to the part."""
        named = stem.startswith(self.part) if self.listed is None else stem in self.listed
        return named != self.without

    def indices(self, stems: Sequence[str], *, name: str) -> list[int]:
        """Which of `stems`, those of the data set called `name`, belong to the part.

        Raises:
            DatasetError: the list names a stem that is not there, or none is left.
        """
        # A list of another data set, or an old one, would otherwise silently be a smaller part than it says.
        absent = sorted((self.listed or frozenset()) - set(stems))
        if absent:
            more = f" and {len(absent) - 1} more" if absent[1:] else ""
            raise DatasetError(f"{self.part[1:]}: lists '{absent[0]}'{more}, which {name} does not have")
        taken = [number for number, stem in enumerate(stems) if self.takes(stem)]
        if not taken and self.listed is not None:
            raise DatasetError(f"{name}: {self.part[1:]} lists all of its {len(stems)} images, so that none is left")
        if not taken:
            kind = "all start" if self.without else "none starts"
            raise DatasetError(f"{name}: of its {len(stems)} images {kind} with '{self.part}'")
        return taken


def split_from_text(text: str) -> Split:
    """Understand the name of a split; a list is read.

    Raises:
        DatasetError: it names none, a colon without a part follows, or the list cannot be read or names nothing.
    """
    name, colon, rest = text.partition(":")
    part = rest.removeprefix("-")
    if not name or (colon and part in ("", "@")):
        raise DatasetError(f"split '{text}': {FORMS} is needed")
    listed = frozenset(lines_of(Path(part[1:]), listing="image")) if part.startswith("@") else None
    return Split(text, name, part, without=rest.startswith("-"), listed=listed)


def lines_of(path: Path, *, listing: str) -> list[str]:
    """The lines of a list that are not blank; raises DatasetError where all are. `listing`: what an entry is called."""
    try:
        lines = [line.strip() for line in read_text(path, most=MOST_BYTES_OF_LIST).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{path}: cannot be read ({why})") from error
    if not lines:
        raise DatasetError(f"{path}: lists no {listing}")
    return lines
