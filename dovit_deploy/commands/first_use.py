"""What one tries first with a bundle: a picture; a backbone without a head can only be timed."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dovit_deploy.bundle.manifest import Manifest


PLACEHOLDER = "YOUR_IMAGE_OR_VIDEO"
"""Where the user's own picture goes."""


def first_use(bundle: Path, manifest: Manifest) -> str:
    """The command line, with the bundle's own path in it."""
    from dovit_deploy.runtime.tasks import takes_pictures

    if takes_pictures(manifest):
        return f"dovit run {PLACEHOLDER} --bundle {quote(str(bundle))}"
    return f"dovit bench {quote(str(bundle))}"
