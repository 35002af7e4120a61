"""Engines on disk: one folder for each key, checked whenever it is opened, changed only under a lock and in one step.

    <home>/engines/<key>/entry.json, <graph>.engine, <graph>.json, <graph>.onnx, <graph>.layers.txt, weights.safetensors
    <home>/kernels/<key>/<graph>-<compute capability>.bin: what TensorRT for RTX compiled for a GPU
    <home>/engines/<key>.lock, <key>.*.partial while one is being built

Inside a bundle, `engines/<key>/` holds the engines, their sidecars and `entry.json` alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dovit_deploy.bundle.directory import ENGINES, Bundle
from dovit_deploy.engines.engine_folder import ENTRY, PARTIAL, EngineSet, Origin, open_engines
from dovit_deploy.engines.engine_record import EngineKey
from dovit_deploy.engines.tensorrt_package import cache_home
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.output_folder import put_in_place, remove, written_aside

KERNELS = "kernels"
PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


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
            EngineInvalid: they are there and damaged.
        """
        return _opened_if_there(self.root / key.name, key, "cache")

    @contextmanager
    def locked(self, key: EngineKey, *, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the key's lock: of several builds of the same engines one works and the others wait.

        Args:
            waiting: called once when somebody else holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = filelock.FileLock(self.root / f"{key.name}.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waiting()
                lock.acquire(poll_interval=0.2)
        except OSError as error:
            raise InputError(f"cannot write the cache {self.root}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def filling(self, key: EngineKey) -> Iterator[Path]:
        """A fresh folder to fill under the key's lock; takes its place when the block ends well, else it goes."""
        for left in self.root.glob(f"{key.name}.*{PARTIAL}"):
            # The lock is held, so whoever made it is dead.
            remove(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{key.name}.", suffix=PARTIAL, dir=self.root))
        try:
            yield folder
            put_in_place(folder, self.root / key.name)
        finally:
            remove(folder)

    def kernels_path(self, key: EngineKey, graph: str, compute_capability: str) -> Path:
        """Where kernels that TensorRT for RTX compiled for a GPU are kept; whoever has them starts faster."""
        return self.root.parent / KERNELS / key.name / f"{graph}-{compute_capability}.bin"

    def folders(self) -> list[Path]:
        """Every entry's folder, by name."""
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and path.suffix != PARTIAL)

    def prune(self, unwanted: Callable[[Path], bool]) -> tuple[list[Path], int]:
        """Remove the entries that are `unwanted`, and what killed builds left; an entry in use stays.

        Returns:
            The removed folders, and how many bytes they held.
        """
        removed: list[Path] = []
        freed = 0
        if not self.root.is_dir():
            return removed, freed
        left = [path for path in self.root.iterdir() if path.is_dir() and path.suffix == PARTIAL]
        for folder in (*left, *filter(unwanted, self.folders())):
            lock = filelock.FileLock(self.root / f"{folder.name.partition('.')[0]}.lock")
            try:
                with lock.acquire(timeout=0):
                    freed += folder_bytes(folder)
                    remove(folder)
                    removed.append(folder)
            except filelock.Timeout:
                continue
        return removed, freed + self._prune_kernels()

    def _prune_kernels(self) -> int:
        """Remove compiled kernels whose engines are not here any more; gives how many bytes they held."""
        kept, freed, kernels = {path.name for path in self.folders()}, 0, self.root.parent / KERNELS
        for folder in kernels.iterdir() if kernels.is_dir() else ():
            if folder.name not in kept:
                freed += folder_bytes(folder)
                remove(folder)
        return freed


def engines_in_bundle(bundle: Bundle, key: EngineKey) -> EngineSet | None:
    """The engines of `key` that `bundle` carries, or None.

    Raises:
        EngineInvalid: they are there and damaged.
    """
    return _opened_if_there(bundle.path / ENGINES / key.name, key, "bundle")


def copy_into_bundle(engines: EngineSet, bundle: Bundle) -> Path:
    """Copy the engines and their sidecars into `bundle`; gives the folder.

    Raises:
        UsageError: the bundle belongs to an installed package.
        InputError: the bundle cannot be written.
    """
    if PACKAGE_FOLDERS & set(bundle.path.parts):
        raise UsageError(
            f"{bundle.path} lies inside an installed package; copy the bundle, or leave out --into-bundle: "
            "the engines are in the cache"
        )
    target = bundle.path / ENGINES / engines.entry.key.name
    try:
        with written_aside(target, overwrite=True) as folder:
            for name in (ENTRY, *(f"{graph}{end}" for graph in engines.records for end in (".engine", ".json"))):
                shutil.copyfile(engines.folder / name, folder / name)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; nothing is changed") from error
    return target


def folder_bytes(folder: Path) -> int:
    """Size of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _opened_if_there(folder: Path, key: EngineKey, origin: Origin) -> EngineSet | None:
    if not folder.is_dir():
        return None
    return open_engines(folder, origin=origin)
