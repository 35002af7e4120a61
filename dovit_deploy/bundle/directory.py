"""Bundle: a directory one can trust. Opening it checks the version, every digest and every path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dovit_deploy.bundle.manifest import FileEntry, Manifest
from dovit_deploy.errors import (
    DigestMismatch,
    FileMissing,
    FileUnlisted,
    InputError,
    ManifestInvalid,
    PathEscapes,
)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
PARITY = "parity.json"
ENGINES = "engines"


def file_entry(path: Path) -> FileEntry:
    """Digest and size of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: where it lies and what it says."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open the bundle at `path` and check all of it.

        Raises:
            InputError: there is no such directory.
            BundleError: one of its subclasses, one per broken rule (docs/bundle-format.md).
        """
        root = Path(path)
        if not root.exists():
            raise InputError(f"no bundle at {root}")
        if not root.is_dir():
            raise ManifestInvalid(f"{root} is a file; a bundle is a directory (NAME.dovit) with {MANIFEST}")
        _check_links(root)
        manifest_path = root / MANIFEST
        if not manifest_path.is_file():
            raise ManifestInvalid(f"{root} has no {MANIFEST}; it is not a bundle, or the export did not finish")
        manifest = Manifest.from_json(manifest_path.read_bytes())
        _check_files(root, manifest)
        return cls(root.resolve(), manifest)

    def graph(self, name: str, *, fast: bool = False) -> Path:
        """Path of the graph `name` (stage0, ..., merged, dense), portable or in the fast form for ONNX Runtime."""
        file = f"{name}.ort.onnx" if fast else f"{name}.onnx"
        if file not in self.manifest.files:
            raise InputError(f"{self.path.name} holds no graph '{file}'")
        return self.path / file

    @property
    def weights(self) -> Path:
        """The weights that all graphs share."""
        return self.path / WEIGHTS

    @property
    def stages(self) -> int:
        """Number of stages: gates + 1."""
        return len(self.manifest.spec.gates) + 1


def _check_links(root: Path) -> None:
    home = root.resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise PathEscapes(f"{path.relative_to(root)} is a link that leaves the bundle {root.name}")


def _check_files(root: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or len(pure.parts) != 1:
            raise PathEscapes(f"the manifest of {root.name} lists '{name}'; files lie flat in the bundle")
        path = root / name
        if not path.is_file():
            raise FileMissing(f"{root.name}: '{name}' is listed in the manifest and not there; copy it whole again")
        if path.stat().st_size != entry.bytes or file_entry(path) != entry:
            raise DigestMismatch(f"{root.name}: '{name}' differs from what was exported; copy or export it again")
    for path in root.iterdir():
        if path.name not in manifest.files and path.name not in (MANIFEST, ENGINES):
            raise FileUnlisted(f"{root.name}: '{path.name}' is not listed in the manifest; take it out")
