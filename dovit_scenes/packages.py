"""The optional packages that rendering and writing use, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from dovit_scenes.errors import SceneEnvironmentError


def opencv() -> Any:  # noqa: ANN401  the module carries no types of its own
    """OpenCV (`cv2`), from whichever of its distributions is installed; no window call is ever made.

    Raises:
        SceneEnvironmentError: it is not installed, or is installed and broken.
    """
    try:
        import cv2
    except ImportError as error:
        raise SceneEnvironmentError(
            f"OpenCV is needed to render scenes and cannot be imported ({error}); "
            "install it with: pip install opencv-python-headless"
        ) from error
    return cv2


def pyav() -> Any | None:  # noqa: ANN401
    """PyAV, or None: clips are then written by OpenCV, as MPEG-4 instead of H.264."""
    try:
        return importlib.import_module("av")
    except ImportError:
        return None
