"""What was found out on this machine and need not be measured again: a JSON file in the user's cache.

    <cache>/<name>.json: what a finding depends on (machine, versions, bundle, flags) -> what was found

It is never trusted: what is damaged, or of another version of this package, counts as not there and is measured again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

import platformdirs
from pydantic import ValidationError

from dovit_deploy.documents import NotData, data_from_json
from dovit_deploy.files import optional_writes, write_text
from dovit_deploy.machine import machine_facts, package_versions, this_machine
from dovit_deploy.record import Record

MOST_ENTRIES = 200
"""Kept; the oldest goes first."""


class Here(Record):
    """This machine, and the versions that are installed."""

    cpu: str
    features: tuple[str, ...]
    """Of `machine.FEATURES`."""
    cores: int
    gpu: str
    """Names of the NVIDIA GPUs; empty without any."""
    versions: dict[str, str]
    """Of this package and of what computes for it."""

    @classmethod
    def now(cls) -> Self:
        """What is here."""
        machine = this_machine()
        return cls(
            cpu=machine.cpu,
            features=machine.features,
            cores=machine.cores,
            gpu=str(machine_facts().get("gpu", "")),
            versions=package_versions(),
        )

    def why_outdated(self, now: Here) -> str | None:
        """Why what was found here will not be recalled `now`; None: it may be."""
        if (self.cpu, self.features, self.cores, self.gpu) != (now.cpu, now.features, now.cores, now.gpu):
            return f"measured on another machine ({self.cpu}, {self.cores} cores)"
        for name in sorted(self.versions.keys() | now.versions.keys()):
            before, after = self.versions.get(name), now.versions.get(name)
            if before != after:
                return f"{name} was {before or 'missing'} and is {after or 'missing'}"
        return None


class Circumstances(Record):
    """What a finding depends on; a subclass adds the rest. It holds for an equal one alone."""

    here: Here
    threads: int | None
    """Of one run; None: the engine's own choice."""


Situation = TypeVar("Situation", bound=Circumstances)
Found = TypeVar("Found", bound=Record)


class RememberedEntry(Record, Generic[Situation, Found]):
    """One finding."""

    situation: Situation
    found: Found


class RememberedEntries(Record, Generic[Situation, Found]):
    """Those of the file."""

    version: Literal[1] = 1
    entries: tuple[RememberedEntry[Situation, Found], ...] = ()


class RememberedFile(Generic[Situation, Found]):
    """The file of all findings of one kind.

    Args:
        name: of the file.
        contents: what it holds.
        lost: what it means for the user if the file cannot be written.
        home: the folder of it; default: the user's cache.
    """

    def __init__(
        self, name: str, contents: type[RememberedEntries[Situation, Found]], *, lost: str, home: Path | None = None
    ) -> None:
        self.path = (home or Path(platformdirs.user_cache_path("dovit-deploy"))) / name
        self._type, self._lost = contents, lost

    def entries(self) -> tuple[RememberedEntry[Situation, Found], ...]:
        """All that is remembered, the oldest first; nothing where the file is missing or damaged."""
        try:
            return self._type.model_validate(data_from_json(self.path.read_bytes())).entries
        except (OSError, NotData, ValidationError):
            return ()

    def recall(self, situation: Situation) -> Found | None:
        """What was found in `situation`."""
        return next((entry.found for entry in self.entries() if entry.situation == situation), None)

    def remember(self, situation: Situation, found: Found) -> None:
        """Keep `found`; where the file cannot be written, it is measured again the next time."""
        others = [entry for entry in self.entries() if entry.situation != situation]
        new: RememberedEntry[Situation, Found] = RememberedEntry(situation=situation, found=found)
        self._write((*others, new)[-MOST_ENTRIES:])

    def forget(self, entries: tuple[RememberedEntry[Situation, Found], ...]) -> None:
        """Drop `entries`; without any other the file goes too, also a damaged one."""
        kept = tuple(entry for entry in self.entries() if entry not in entries)
        if kept:
            self._write(kept)
        else:
            self.path.unlink(missing_ok=True)

    def _write(self, entries: tuple[RememberedEntry[Situation, Found], ...]) -> None:
        # Two processes at once: the later one wins, and what the other had found is measured again.
        with optional_writes(self._lost):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, self._type(entries=entries).model_dump_json(indent=1) + "\n")
