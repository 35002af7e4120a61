"""When may a bundle be trusted, and how do its thresholds change?

A bundle is a directory. Opening it checks the version, every digest and every path. Calibration changes thresholds, and
what is stated at them: graphs and weights stay as they are, and the folder is replaced in one step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.bundle.installed import chosen_bundle
from dovit_deploy.bundle.interface import FP32, graph_file, graph_interfaces, weights_file
from dovit_deploy.bundle.manifest import FORMAT, FileEntry, GateDefaults, Manifest, TokenCount
from dovit_deploy.bundle.parity import ParityReport, PrecisionParity
from dovit_deploy.bundle.weights import NotWeights, first_not_finite, spans_from_file
from dovit_deploy.claims import real_path
from dovit_deploy.documents import NotData, bytes_of_document, data_from_json
from dovit_deploy.errors import (
    BundleError,
    DigestMismatch,
    FileMissing,
    FileUnlisted,
    ManifestInvalid,
    PathEscapes,
    UsageError,
    VersionUnknown,
    WeightsInvalid,
    shown,
)
from dovit_deploy.files import copy_folder, first_foreign, reported_writes, written_aside

MANIFEST = "manifest.json"
WEIGHTS = weights_file()
PARITY = "parity.json"
CALIBRATION = "calibration.json"
ENGINES = "engines"

PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})
"""Where package managers install; they replace what is there without asking."""

_Report = TypeVar("_Report", ParityReport, Calibration)

OPEN_AGAIN = "open it again if that was meant, else copy or export it again"
"""What fixes a bundle that was changed while it was in use."""


def file_entry(path: Path) -> FileEntry:
    """Digest and size of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open the bundle at `path`, or the installed model of that name, and check all of it.

        Raises:
            UsageError: `path` is neither text nor a path.
            InputError: there is no such directory, and no such model.
            BundleError: one of its subclasses, one per broken rule (docs/bundle-format.md).
        """
        root = chosen_bundle(path).path
        if not root.is_dir():
            raise ManifestInvalid(f"{root} is a file; a bundle is a directory (NAME.dovit) with {MANIFEST}")
        # Before any file is read: through a link it could be any of the user's.
        _check_links(root)
        manifest_path = root / MANIFEST
        if not manifest_path.is_file():
            raise ManifestInvalid(f"{root} has no {MANIFEST}; it is not a bundle, or the export did not finish")
        try:
            text = bytes_of_document(manifest_path)
        except NotData as error:
            raise ManifestInvalid(f"{manifest_path} is no manifest: {error}") from error
        manifest = Manifest.from_json(text)
        _check_files(root, manifest)
        _check_precisions(root, manifest)
        _check_weights(root, manifest)
        return cls(root.resolve(), manifest)

    def graph(self, name: str, *, fast: bool = False, precision: str = FP32) -> Path:
        """Path of the graph `name` (stage0, ..., merged, dense), portable or in the fast form for ONNX Runtime.

        Raises:
            UsageError: the bundle was not exported in `precision`.
            FileMissing: the manifest does not list it.
        """
        if precision not in self.manifest.precisions:
            raise UsageError(
                f"{self.path.name} holds no {precision} form, only {', '.join(self.manifest.precisions)}; export it: "
                f"dovit export CHECKPOINT --precision fp32,{precision} --calibration IMAGES"
            )
        file = graph_file(name, fast=fast, precision=precision)
        if file not in self.manifest.files:
            raise FileMissing(f"{self.path.name} holds no graph '{file}'; export the checkpoint again")
        return self.path / file

    def content(self, name: str) -> bytes:
        """The bytes of a listed file, read now and checked now: what runs is what was opened, whatever happens to it.

        Nothing stays mapped, so a file that is cut short afterwards harms nobody who has its bytes.

        Raises:
            FileMissing: it was taken away since the bundle was opened.
            DigestMismatch: it was changed since then.
        """
        path = self.path / name
        try:
            # A pipe under its name would wait for whoever writes to it.
            content = path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise FileMissing(f"{self.path.name}: '{name}' cannot be read ({error.strerror or error})") from error
        if content is None:
            raise FileMissing(f"{self.path.name}: '{name}' is gone since the bundle was opened; {OPEN_AGAIN}")
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise DigestMismatch(f"{self.path.name}: '{name}' has changed since the bundle was opened; {OPEN_AGAIN}")
        return content

    def parity(self) -> ParityReport | None:
        """What `parity.json` says; None where the bundle has none.

        Raises:
            BundleError: it is not what it must be.
        """
        return self._report(PARITY, ParityReport, "not a parity report ({}); export it again")

    def calibration(self) -> Calibration | None:
        """What `calibration.json` says; None where the bundle has none.

        Raises:
            BundleError: it is not what it must be.
        """
        return self._report(CALIBRATION, Calibration, "not that of a calibration ({}); calibrate it again")

    def _report(self, name: str, kind: type[_Report], fault: str) -> _Report | None:
        """What the file `name` says; `fault`: what it is else, with the field that shows it."""
        if name not in self.manifest.files:
            return None
        try:
            return kind.model_validate_json(self.content(name))
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise BundleError(f"{self.path.name}: {name} is {fault.format(field)}") from error

    def calibrated(self, calibration: Calibration) -> Bundle:
        """This with the thresholds of `calibration` as its own, in memory alone."""
        defaults = GateDefaults(thresholds=calibration.thresholds, floor=calibration.floor, origin="calibration")
        return Bundle(self.path, self.manifest.model_copy(update={"defaults": defaults}))

    def weights_files(self, precision: str = FP32) -> tuple[str, ...]:
        """Names of the files that the graphs of `precision` point into."""
        return tuple(dict.fromkeys((WEIGHTS, weights_file(precision))))

    def copied_graph(self, name: str, folder: Path, *, fast: bool = False, precision: str = FP32) -> Path:
        """The graph `name` and its weights, checked as `content` does, copied into `folder`; path of the graph's copy.

        For readers that take files alone.
        """
        path = self.graph(name, fast=fast, precision=precision)
        for file in (path.name, *self.weights_files(precision)):
            if not (folder / file).exists():
                (folder / file).write_bytes(self.content(file))
        return folder / path.name

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
    # Engines too, which are not listed: a link among them could reach any file of the user's. No other folder is
    # searched, since none belongs to a bundle, and what was given may be the whole disk.
    for path in chain(root.iterdir(), (root / ENGINES).rglob("*")):
        if path.is_symlink() and not _resolved(path).is_relative_to(home):
            raise PathEscapes(f"{path.relative_to(root)} is a link that leaves the bundle {root.name}")


def _resolved(path: Path) -> Path:
    """What a link leads to in the end; links in a circle lead nowhere, which is outside, too."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return Path("/")


def _check_files(root: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or len(pure.parts) != 1:
            # Foreign data: "..", an absolute path or, on Windows, a backslash would lead out of the bundle.
            raise PathEscapes(f"the manifest of {root.name} lists '{name}'; files lie flat in the bundle")
        path = root / name
        if not path.is_file():
            raise FileMissing(f"{root.name}: '{name}' is listed in the manifest and not there; copy it whole again")
        # The size first: it costs nothing, and a copy that was cut short shows in it.
        if path.stat().st_size != entry.bytes or file_entry(path) != entry:
            raise DigestMismatch(f"{root.name}: '{name}' differs from what was exported; copy or export it again")
    for path in root.iterdir():
        if path.name not in manifest.files and path.name not in (MANIFEST, ENGINES):
            raise FileUnlisted(f"{root.name}: '{path.name}' is not listed in the manifest; take it out")


def _check_weights(root: Path, manifest: Manifest) -> None:
    """Raise WeightsInvalid unless the weights are whole and finite: with NaN every pixel gets the first class."""
    for name in map(weights_file, dict.fromkeys((FP32, *manifest.precisions))):
        if name not in manifest.files:
            continue
        try:
            bad = first_not_finite(root / name, spans_from_file(root / name))
        except NotWeights as error:
            raise WeightsInvalid(f"{root.name}: {name} is no file of weights: {error}") from error
        if bad is not None:
            raise WeightsInvalid(
                f"{root.name}: the weight '{shown(bad)}' holds NaN or Inf; export the checkpoint again"
            )


def _check_precisions(root: Path, manifest: Manifest) -> None:
    """Raise ManifestInvalid where a precision is stated of which a file is not listed."""
    for precision in manifest.precisions:
        # An fp32 graph that is missing is reported where it is asked for: the reference needs the weights alone.
        if precision == FP32:
            continue
        graphs = [
            graph_file(graph, fast=fast, precision=precision)
            for graph in graph_interfaces(manifest.spec)
            for fast in (False, True)
        ]
        for name in (weights_file(precision), *graphs):
            if name not in manifest.files:
                raise ManifestInvalid(
                    f"{root.name}: its manifest states the precision {shown(precision)} and lists no '{shown(name)}'"
                )


def foreign_in_bundle(folder: Path) -> str | None:
    """Why `folder` is no bundle that a new one may replace; None: it holds what an export wrote, and built engines.

    Files are known by their names: a damaged bundle can be replaced by a new export.
    """
    try:
        text = bytes_of_document(folder / MANIFEST)
        listed = set(Manifest.from_json(text).files)
    except OSError:
        return f"it has no {MANIFEST} of a bundle"
    except VersionUnknown:
        # Of another version only this much is known.
        body = data_from_json(text)
        files = body.get("files") if isinstance(body, dict) else None
        listed = set(files) if isinstance(files, dict) else set()
    except (NotData, ManifestInvalid) as error:
        return f"its {MANIFEST} is not that of a bundle ({error})"

    def expected(path: str) -> bool:
        first, *below = path.split("/")
        if first == ENGINES:
            return len(below) < 2 or (len(below) == 2 and below[1].endswith((".engine", ".json")))
        return not below and (first in listed or first == MANIFEST)

    return first_foreign(folder, expected)


def refuse_inside_bundle(path: Path, *, option: str) -> None:
    """Raise UsageError when `path` lies in a bundle: a file that its manifest does not list would spoil it."""
    for folder in real_path(path).parents:
        try:
            body = data_from_json(bytes_of_document(folder / MANIFEST))
        except (OSError, NotData):
            continue
        if isinstance(body, dict) and body.get("format") == FORMAT:
            raise UsageError(f"{option} {path}: this lies in the bundle {folder.name}; choose another folder")


def refuse_installed(bundle: Bundle) -> None:
    """Raise UsageError when the bundle belongs to an installed package: the next upgrade would undo a change."""
    if PACKAGE_FOLDERS & set(bundle.path.parts):
        raise UsageError(f"{bundle.path} lies inside an installed package; write a calibrated copy with -o NEW.dovit")


def write_calibrated(
    bundle: Bundle,
    calibration: Calibration,
    target: Path,
    *,
    losses: tuple[PrecisionParity, ...] = (),
    overwrite: bool = False,
) -> Bundle:
    """Write `bundle` with the thresholds of `calibration` as its own to `target`, which may be the bundle itself.

    What `parity.json` states of other precisions was measured at the former thresholds; `losses` takes its place.
    With `overwrite` another bundle at `target` is replaced.

    A new folder is filled beside `target` and renamed into place: a process that opens the bundle meanwhile, or
    after a kill, finds the old one or the new one, never a mixture.

    Raises:
        OutputFailed: the folder cannot be written.
    """
    in_place = target.resolve() == bundle.path
    # A link would be replaced by a folder; what it points at is meant.
    path = bundle.path if in_place else target
    with (
        reported_writes(path, kept="nothing is changed"),
        written_aside(path, overwrite=in_place or overwrite, mark=foreign_in_bundle) as folder,
    ):
        _fill(bundle, calibration, losses, folder, link=in_place)
        # Checked in full before anything is replaced.
        Bundle.open(folder)
    return Bundle.open(path)


def _fill(
    bundle: Bundle, calibration: Calibration, losses: tuple[PrecisionParity, ...], folder: Path, *, link: bool
) -> None:
    report = bundle.parity()
    written = {CALIBRATION: calibration.model_dump_json(indent=1)}
    if report is not None and report.precisions:
        written[PARITY] = report.model_copy(update={"precisions": losses}).model_dump_json(indent=1)
    # In place the old names go away, so links will do; two bundles must not share files.
    copy_folder(bundle.path, folder, without={MANIFEST, *written}, copy=_linked if link else shutil.copy2)
    for name, text in written.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    manifest = bundle.calibrated(calibration).manifest
    counts = tuple(
        # Without extra tokens a stage can be empty, but no count in a manifest is below 1.
        TokenCount(minimum=old.minimum, typical=max(old.minimum, round(kept)), maximum=old.maximum)
        for old, kept in zip(manifest.counts, _kept_per_window(bundle, calibration), strict=True)
    )
    files = {**manifest.files, **{name: file_entry(folder / name) for name in written}}
    changed = manifest.model_copy(update={"counts": counts, "files": files})
    (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")


def _kept_per_window(bundle: Bundle, calibration: Calibration) -> list[float]:
    """The held-out images' mean token counts; sums over an image's windows become means."""
    kept = calibration.chosen.kept
    # Every window enters the first stage whole, so `kept[0]` is its number of tokens times the number of windows.
    return [entry * bundle.manifest.spec.tokens / kept[0] for entry in kept]


def _linked(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none; the old name goes away afterwards."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
