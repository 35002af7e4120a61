"""The bundle that is taken when none is named: an installed distribution of the entry point group `dovit.models`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from dovit_deploy.errors import InputError

GROUP = "dovit.models"
DEFAULT = "default"


def default_bundle() -> tuple[Path, str]:
    """Path of the default model's bundle, and the line about its licence.

    Several models installed: the entry point named `default` counts; one alone counts under any name. The entry
    point names a module with `bundle_path() -> Path` and `LICENSE_LINE: str`.

    Raises:
        InputError: none is installed, or several and none is called `default`.
    """
    entries = list(importlib.metadata.entry_points(group=GROUP))
    chosen = [entry for entry in entries if entry.name == DEFAULT] or entries
    if len(chosen) != 1:
        found = ", ".join(sorted(entry.name for entry in entries)) or "none"
        raise InputError(
            f"no --bundle given and no default model installed (found: {found}); give --bundle NAME.dovit, "
            "or install one: pip install ./models/road-tiny"
        )
    module = chosen[0].load()
    return Path(module.bundle_path()), str(module.LICENSE_LINE)
