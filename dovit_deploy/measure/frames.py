"""The frames that a benchmark runs on: the user's, or rendered street scenes from empty road to crowd."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_deploy.bundle.manifest import Manifest
from dovit_deploy.errors import SourceError
from dovit_deploy.runtime.frame_source import FailedFrame
from dovit_deploy.runtime.images import DEFAULT_MAX_PIXELS
from dovit_deploy.runtime.results import RGB
from dovit_deploy.runtime.sources import open_source
from dovit_deploy.runtime.transforms import to_input

MOST_FRAMES = 16
"""Taken from a source: enough to see its variety, few enough to lie in memory while they are repeated."""

DENSITIES = (0.0, 0.5, 1.0)
"""Of rendered streets: what stops early depends on how much there is to see."""

SCENES_PER_DENSITY, SCENE_SEED = 3, 3


@dataclass(frozen=True)
class BenchFrames:
    """Frames as the model takes them, (1, 3, H, W) float32 each, with their names, and what could not be read."""

    pixels: tuple[npt.NDArray[np.float32], ...]
    labels: tuple[str, ...]
    failures: tuple[str, ...] = ()
    taken_from: int | None = None
    """How many frames the source has, where it has more than were taken."""


def rendered_frames(manifest: Manifest) -> BenchFrames:
    """Street scenes of every density at the model's size; each the start of a street of its own."""
    pictures = dict(_rendered())
    return BenchFrames(tuple(_pixels(rgb, manifest) for rgb in pictures.values()), tuple(pictures))


def _rendered() -> Iterator[tuple[str, RGB]]:
    from dovit_deploy.scenes import street_frames

    for density in DENSITIES:
        for number in range(SCENES_PER_DENSITY):
            (frame,) = street_frames(1, seed=SCENE_SEED + number, density=density)
            yield f"street {number + 1}, density {density:g}", frame.rgb


def frames_from_source(source: str, manifest: Manifest, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> BenchFrames:
    """At most `MOST_FRAMES` frames of what the user named, evenly spread, resized to the model's size.

    Raises:
        SourceError: it does not open, or no frame of it can be read.
        UsageError, PackageMissing: see `open_source`.
    """
    with closing(open_source(source, max_pixels=max_pixels)) as opened:
        count = opened.count
    every = 1 if count is None else max(1, math.ceil(count / MOST_FRAMES))
    pixels, labels, failures = [], [], []
    with open_source(source, max_pixels=max_pixels, every=every, max_frames=MOST_FRAMES) as frames:
        for frame in frames:
            if isinstance(frame, FailedFrame):
                failures.append(frame.message)
                continue
            pixels.append(_pixels(frame.rgb, manifest))
            labels.append(f"{Path(frame.source).name} {frame.index}")
    if not pixels:
        raise SourceError(failures[0] if failures else f"{source}: no frame could be read")
    return BenchFrames(tuple(pixels), tuple(labels), tuple(failures), count if every > 1 else None)


def _pixels(rgb: RGB, manifest: Manifest) -> npt.NDArray[np.float32]:
    """(1, 3, H, W) at the model's size, also for models whose larger images would slide."""
    whole = manifest.preprocessing.model_copy(update={"stride": None})
    return to_input(rgb, whole, manifest.spec.size)
