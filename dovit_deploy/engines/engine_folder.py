"""A folder of engines: what its sidecars say, and whether the engines are those that they were written for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from dovit_deploy.bundle.directory import file_entry
from dovit_deploy.bundle.spec import Noun
from dovit_deploy.engines.engine_record import EngineEntry, EngineKey, EngineRecord
from dovit_deploy.errors import EngineInvalid

ENTRY = "entry.json"
PARTIAL = ".partial"
MEND = "build them again with: dovit build BUNDLE --rebuild"
ALTERED = "is not what its sidecar was written for (SHA-256 differs)"

Origin = Literal["cache", "bundle"]
N = TypeVar("N", bound=Noun)


@dataclass(frozen=True)
class EngineSet:
    """The engines of one key, and what their sidecars say."""

    folder: Path
    entry: EngineEntry
    records: dict[str, EngineRecord]
    """By graph."""
    origin: Origin
    """Built on this machine, or come with a bundle: such engines are run only on request."""

    @property
    def bytes(self) -> int:
        """Size of the engines."""
        return sum(record.file.bytes for record in self.records.values())

    @property
    def compute_capabilities(self) -> list[tuple[str, ...]]:
        """What each engine was built for."""
        return [record.compute_capabilities for record in self.records.values()]

    def engine_path(self, graph: str) -> Path:
        """The engine of `graph`."""
        return self.folder / f"{graph}.engine"


def open_engines(folder: Path, *, origin: Origin) -> EngineSet:
    """Open a folder of engines, whatever their key, and check every byte.

    Raises:
        EngineInvalid: a file is missing, not readable as what it should be, or not what its sidecar was written for.
    """
    engines = read_engines(folder, origin=origin)
    for graph, record in engines.records.items():
        derived = folder / f"{graph}.onnx"
        # Bundles carry the engines without what they were built from.
        files = {engines.engine_path(graph): record.file, **({derived: record.onnx} if derived.is_file() else {})}
        for path, entry in files.items():
            if file_entry(path) != entry:
                raise EngineInvalid(f"{path} {ALTERED}; {MEND}")
    return engines


def read_engines(folder: Path, *, origin: Origin) -> EngineSet:
    """Read the sidecars of a folder of engines, whatever their key; of the engines only their sizes are looked at.

    Raises:
        EngineInvalid: a file is missing, of another size, not readable as what it should be, or of another entry.
    """
    entry = read_entry(folder)
    records = {}
    for graph in entry.key.graphs:
        records[graph] = _read(folder / f"{graph}.json", EngineRecord)
        _check_record(folder / f"{graph}.engine", records[graph], graph, entry.key)
    return EngineSet(folder, entry, records, origin)


def read_entry(folder: Path) -> EngineEntry:
    """What a folder of engines says of itself.

    Raises:
        EngineInvalid: nothing that can be read, or a folder of another name than its key.
    """
    entry = _read(folder / ENTRY, EngineEntry)
    if entry.key.name != folder.name and not folder.name.endswith(PARTIAL):
        raise EngineInvalid(f"{folder} holds engines of another key, {entry.key.name}; {MEND}")
    return entry


def checked_plan(engines: EngineSet, graph: str) -> bytes:
    """The engine of `graph`, read once: these bytes were checked, whatever becomes of the file.

    Raises:
        EngineInvalid: it is not the engine that the sidecar was written for.
    """
    path, record = engines.engine_path(graph), engines.records[graph]
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineInvalid(f"{path}: {error.strerror or error}; {MEND}") from error
    if hashlib.sha256(plan).hexdigest() != record.file.sha256:
        raise EngineInvalid(f"{path} {ALTERED}; {MEND}")
    return plan


def _read(path: Path, kind: type[N]) -> N:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EngineInvalid(f"{path}: {error.strerror or error}; {MEND}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise EngineInvalid(f"{path}: {'.'.join(map(str, first['loc'])) or 'text'}: {first['msg']}; {MEND}") from error


def _check_record(path: Path, record: EngineRecord, graph: str, key: EngineKey) -> None:
    """Raise EngineInvalid unless `record` was written under `key`, for an engine of the size of that at `path`."""
    stated = (record.graph, record.engine, record.package_version, record.precision, record.key)
    if stated != (graph, key.engine, key.package_version, key.precision, key.name):
        raise EngineInvalid(f"{path}: its sidecar belongs to another engine ({', '.join(stated)}); {MEND}")
    if not path.is_file():
        raise EngineInvalid(f"{path} is missing; {MEND}")
    if path.stat().st_size != record.file.bytes:
        raise EngineInvalid(f"{path} has {path.stat().st_size} bytes, its sidecar says {record.file.bytes}; {MEND}")
