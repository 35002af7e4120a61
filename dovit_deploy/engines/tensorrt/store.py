"""Engines on disk: one folder per key, checked whenever it is opened, changed only under a lock and in one step.

    <home>/engines/<key>/entry.json, <graph>.engine, <graph>.json, <graph>.onnx, <graph>.layers.txt, weights.safetensors
    <home>/kernels/<key>/<graph>-<GPU>-<compute capability>.bin: what TensorRT for RTX compiled for a GPU
    <home>/engines/<key>.lock, <key>.*.partial while one is being built

Inside a bundle, `engines/<key>/` holds only the engines, their sidecars and `entry.json`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import filelock
from pydantic import ValidationError

from dovit_deploy.bundle.bundle import ENGINES, PACKAGE_FOLDERS, Bundle, file_entry
from dovit_deploy.bundle.interface import graph_file
from dovit_deploy.claims import PARTIAL, claimed, remove
from dovit_deploy.documents import fault_of
from dovit_deploy.engines.cuda.driver import GpuDevice
from dovit_deploy.engines.tensorrt.package import cache_home
from dovit_deploy.engines.tensorrt.record import BuildRecord, EngineKey, EngineRecord
from dovit_deploy.errors import EngineInvalid, UsageError
from dovit_deploy.files import first_foreign, put_in_place, reported_writes, written_aside
from dovit_deploy.record import Record

ENTRY = "entry.json"
KERNELS = "kernels"
REBUILD = "build them again with: dovit build BUNDLE --rebuild"
ALTERED = "is not what its sidecar was written for (SHA-256 differs)"

Origin = Literal["cache", "bundle"]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class EngineSet:
    """The engines of one key, and what their sidecars say."""

    folder: Path
    entry: BuildRecord
    records: dict[str, EngineRecord]
    """By graph."""
    origin: Origin
    """cache: built on this machine; bundle: came with a bundle, hence run only on request."""

    @property
    def bytes(self) -> int:
        """Bytes of all engines together."""
        return sum(record.file.bytes for record in self.records.values())

    @property
    def compute_capabilities(self) -> list[tuple[str, ...]]:
        """What each engine was built for."""
        return [record.compute_capabilities for record in self.records.values()]

    def engine_path(self, graph: str) -> Path:
        """File of the engine of `graph`."""
        return self.folder / f"{graph}.engine"


def open_engines(folder: Path, *, origin: Origin) -> EngineSet:
    """Open a folder of engines, whatever their key, and check every byte.

    Raises:
        EngineInvalid: a file is missing, malformed, or not what its sidecar was written for.
    """
    engines = read_engines(folder, origin=origin)
    for graph, record in engines.records.items():
        derived = folder / graph_file(graph)
        # Engines in a bundle come without the graphs from which they were built.
        files = {engines.engine_path(graph): record.file, **({derived: record.onnx} if derived.is_file() else {})}
        for path, entry in files.items():
            if file_entry(path) != entry:
                raise EngineInvalid(f"{path} {ALTERED}; {REBUILD}")
    return engines


def read_engines(folder: Path, *, origin: Origin) -> EngineSet:
    """Read the sidecars of a folder of engines, whatever their key; of the engines, only the sizes are checked.

    Raises:
        EngineInvalid: a file is missing, malformed, of another size, or belongs to another key.
    """
    entry = read_entry(folder)
    records = {}
    for graph in entry.key.graphs:
        records[graph] = _read(folder / f"{graph}.json", EngineRecord)
        _check_record(folder / f"{graph}.engine", records[graph], graph, entry.key)
    return EngineSet(folder, entry, records, origin)


def read_entry(folder: Path) -> BuildRecord:
    """The `entry.json` of a folder of engines.

    Raises:
        EngineInvalid: it is missing or malformed, or the folder is not named after its key.
    """
    entry = _read(folder / ENTRY, BuildRecord)
    # While it is being filled, a folder has a temporary name.
    if entry.key.name != folder.name and not folder.name.endswith(PARTIAL):
        raise EngineInvalid(f"{folder} holds engines of another key, {entry.key.name}; {REBUILD}")
    return entry


def checked_plan(engines: EngineSet, graph: str) -> bytes:
    """The engine of `graph`, read once: the bytes returned are the bytes that were checked, even if the file changes.

    Raises:
        EngineInvalid: it is not the engine that the sidecar was written for.
    """
    path, record = engines.engine_path(graph), engines.records[graph]
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineInvalid(f"{path}: {error.strerror or error}; {REBUILD}") from error
    if hashlib.sha256(plan).hexdigest() != record.file.sha256:
        raise EngineInvalid(f"{path} {ALTERED}; {REBUILD}")
    return plan


def _read(path: Path, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EngineInvalid(f"{path}: {error.strerror or error}; {REBUILD}") from error
    except ValidationError as error:
        raise EngineInvalid(f"{path}: {fault_of(error)}; {REBUILD}") from error


def _check_record(path: Path, record: EngineRecord, graph: str, key: EngineKey) -> None:
    """Raise EngineInvalid unless `record` was written under `key`, for an engine of the size of that at `path`."""
    # The digest proves only that engine and sidecar belong together; the key, that both belong here.
    stated = (record.graph, record.engine, record.package_version, record.precision, record.key)
    if stated != (graph, key.engine, key.package_version, key.precision, key.name):
        raise EngineInvalid(f"{path}: its sidecar belongs to another engine ({', '.join(stated)}); {REBUILD}")
    if not path.is_file():
        raise EngineInvalid(f"{path} is missing; {REBUILD}")
    if path.stat().st_size != record.file.bytes:
        raise EngineInvalid(f"{path} has {path.stat().st_size} bytes, its sidecar says {record.file.bytes}; {REBUILD}")


class EngineCache:
    """The cache of this user.

    Args:
        home: default: the user's cache folder (XDG_CACHE_HOME).
    """

    def __init__(self, home: Path | None = None) -> None:
        self.root = (home or cache_home()) / "engines"

    def find(self, key: EngineKey) -> EngineSet | None:
        """The engines of `key`, or None.

        Raises:
            EngineInvalid: they exist and are damaged.
        """
        folder = self.root / key.name
        return open_engines(folder, origin="cache") if folder.is_dir() else None

    @contextmanager
    def locked(self, key: EngineKey, *, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the key's lock: of several builds of the same engines, one works and the others wait.

        Args:
            waiting: called once if another process holds it.
        """
        with reported_writes(self.root):
            # Engines can carry code: nobody else may write here.
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = filelock.FileLock(self.root / f"{key.name}.lock")
            try:
                # First without waiting, so that `waiting` is called only if there is something to wait for.
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def filling(self, key: EngineKey) -> Iterator[Path]:
        """A new folder to fill under the key's lock; it becomes the key's folder if the block succeeds."""
        for left in self.root.glob(f"{key.name}.*{PARTIAL}"):
            # The lock is held, so the process that created it has ended.
            remove(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{key.name}.", suffix=PARTIAL, dir=self.root))
        try:
            yield folder
            put_in_place(folder, self.root / key.name)
        finally:
            remove(folder)

    def kernels_path(self, key: EngineKey, graph: str, device: GpuDevice) -> Path:
        """File of the kernels that TensorRT for RTX compiled for a GPU; with them an engine loads faster."""
        # By name, too: TensorRT refuses those of another card of the same compute capability.
        card = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")[:64]
        # Not among the engines: their folder never changes once it has its name.
        return self.root.parent / KERNELS / key.name / f"{graph}-{card}-{device.compute_capability}.bin"

    def folders(self) -> list[Path]:
        """The folder of every key, sorted by name."""
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and path.suffix != PARTIAL)

    def prune(self, unwanted: Callable[[Path], bool]) -> tuple[list[Path], int]:
        """Remove the folders that are `unwanted`, and what killed builds left; a folder in use stays.

        Returns:
            The removed folders, and how many bytes they held.
        """
        removed: list[Path] = []
        freed = 0
        if not self.root.is_dir():
            return removed, freed
        left = [path for path in self.root.iterdir() if path.is_dir() and path.suffix == PARTIAL]
        for folder in (*left, *filter(unwanted, self.folders())):
            # Up to the first dot: the name of a partial folder is `<key>.<random>.partial`.
            lock = filelock.FileLock(self.root / f"{folder.name.partition('.')[0]}.lock")
            try:
                with lock.acquire(timeout=0):
                    freed += folder_bytes(folder)
                    remove(folder)
                    removed.append(folder)
            except filelock.Timeout:
                # Another process is building it.
                continue
        return removed, freed + self._prune_kernels()

    def _prune_kernels(self) -> int:
        """Remove compiled kernels whose engines are gone; returns how many bytes they held."""
        kept, freed, kernels = {path.name for path in self.folders()}, 0, self.root.parent / KERNELS
        for folder in kernels.iterdir() if kernels.is_dir() else ():
            if folder.name not in kept:
                freed += folder_bytes(folder)
                remove(folder)
        return freed


def copy_into_bundle(engines: EngineSet, bundle: Bundle) -> Path:
    """Copy the engines and their sidecars into `bundle`; returns the new folder.

    Raises:
        UsageError: the bundle belongs to an installed package.
        OutputFailed: the bundle cannot be written.
    """
    # A package manager neither expects nor removes files that were added to a package.
    if PACKAGE_FOLDERS & set(bundle.path.parts):
        raise UsageError(
            f"{bundle.path} is inside an installed package; copy the bundle, or leave out --into-bundle: "
            "the engines are in the cache"
        )
    target = bundle.path / ENGINES / engines.entry.key.name
    # A calibration in place copies the bundle with its engines: none may come or go meanwhile.
    with (
        reported_writes(target, kept="nothing is changed"),
        claimed(bundle.path),
        written_aside(target, overwrite=True, mark=_foreign_in_engines) as folder,
    ):
        for name in (ENTRY, *(f"{graph}{end}" for graph in engines.records for end in (".engine", ".json"))):
            shutil.copyfile(engines.folder / name, folder / name)
    return target


def _foreign_in_engines(folder: Path) -> str | None:
    # By their names alone: damaged engines are replaced.
    return first_foreign(folder, lambda path: path.endswith((".engine", ".json")))


def folder_bytes(folder: Path) -> int:
    """Total size of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
