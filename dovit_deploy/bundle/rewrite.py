"""The same bundle with other default thresholds: graphs and weights stay, the folder changes in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dovit_deploy.bundle.calibration import Calibration
from dovit_deploy.bundle.directory import MANIFEST, Bundle, file_entry
from dovit_deploy.bundle.manifest import GateDefaults, TokenCount
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.output_folder import written_aside

CALIBRATION = "calibration.json"
PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


def refuse_installed(bundle: Bundle) -> None:
    """Raise UsageError when the bundle belongs to an installed package: the next upgrade would undo a change."""
    if PACKAGE_FOLDERS & set(bundle.path.parts):
        raise UsageError(f"{bundle.path} lies inside an installed package; write a calibrated copy with -o NEW.dovit")


def write_calibrated(bundle: Bundle, calibration: Calibration, target: Path) -> Bundle:
    """Write `bundle` with the thresholds of `calibration` as its own to `target`, which may be the bundle itself.

    A new folder is filled beside `target` and renamed into place: whoever opens the bundle meanwhile, or after a kill,
    finds the old one or the new one, never a mixture.

    Raises:
        InputError: the folder cannot be written.
    """
    in_place = target.resolve() == bundle.path
    # A link would be replaced by a folder; what it points at is meant.
    place = bundle.path if in_place else target
    try:
        with written_aside(place, overwrite=in_place) as folder:
            _fill(bundle, calibration, folder, link=in_place)
            Bundle.open(folder)
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror or error}; nothing is changed") from error
    return Bundle.open(place)


def _fill(bundle: Bundle, calibration: Calibration, folder: Path, *, link: bool) -> None:
    shutil.copytree(
        bundle.path,
        folder,
        dirs_exist_ok=True,
        ignore=lambda place, names: {MANIFEST, CALIBRATION} & set(names) if Path(place) == bundle.path else set(),
        copy_function=_linked if link else shutil.copy2,
    )
    (folder / CALIBRATION).write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    manifest = bundle.manifest
    defaults = GateDefaults(thresholds=calibration.thresholds, floor=calibration.floor, origin="calibration")
    counts = tuple(
        TokenCount(minimum=old.minimum, typical=max(old.minimum, round(kept)), maximum=old.maximum)
        for old, kept in zip(manifest.counts, _kept_per_window(bundle, calibration), strict=True)
    )
    files = {**manifest.files, CALIBRATION: file_entry(folder / CALIBRATION)}
    changed = manifest.model_copy(update={"defaults": defaults, "counts": counts, "files": files})
    (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")


def _kept_per_window(bundle: Bundle, calibration: Calibration) -> list[float]:
    """The held-back images' mean token counts; sums over an image's windows become means."""
    kept = calibration.chosen.kept
    return [entry * bundle.manifest.spec.tokens / kept[0] for entry in kept]


def _linked(source: str, target: str) -> str:
    """A hard link, or a copy where the file system has none; the old name goes away afterwards."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
