"""The bundle `road-tiny.dovit`: 11 classes of street scenes at 360x480, trained on CamVid."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LICENSE_LINE", "bundle_path"]

LICENSE_LINE = "road-tiny: weights trained on CamVid, for non-commercial research only (CC BY-NC 4.0)"


def bundle_path() -> Path:
    """The bundle's folder inside this package."""
    return Path(__file__).parent / "road-tiny.dovit"
