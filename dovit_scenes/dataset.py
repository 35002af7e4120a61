"""Rendered scenes as a data set in CamVid's layout: images, label maps, lists of stems, classes.json.

Every image is a moment of a street of its own, so that a thousand images are a thousand streets.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dovit_scenes import packages
from dovit_scenes.clip import Progress
from dovit_scenes.errors import SceneArgumentError
from dovit_scenes.render import SceneFrame, render
from dovit_scenes.things import CLASS_NAMES, IGNORE_ID, PALETTE
from dovit_scenes.world import refuse_negative, world_from_seed

LATEST = 1500
"""Frames into a drive beyond which no image is taken."""


def scene_sample(
    seed: int, number: int, *, size: tuple[int, int], density: float | None = None, share: float = 1.0
) -> SceneFrame:
    """Image `number` of data set `seed`: its street, moment and (unless given) density are drawn from the two.

    Raises:
        SceneArgumentError: a negative seed, or a density or share outside 0..1.
    """
    refuse_negative(seed)
    # Both numbers and a constant of this file: no other draw shares the sequence.
    rng = np.random.default_rng([seed, number, 9])
    street, moment = int(rng.integers(2**31)), int(rng.integers(LATEST))
    # Drawn even where `density` is given, so that giving one changes nothing else about the image.
    drawn = float(rng.uniform(0.0, 1.0))
    world = world_from_seed(street, density=drawn if density is None else density, share=share)
    return render(world, moment, size=size)


def write_dataset(
    folder: Path,
    splits: Mapping[str, int],
    *,
    seed: int,
    size: tuple[int, int],
    density: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `splits` (name -> number of images) to the new folder `folder`; it appears only when complete.

    Raises:
        SceneArgumentError: the folder exists, or its parent folder does not.
    """
    if folder.exists():
        raise SceneArgumentError(f"{folder} exists; name a folder that does not")
    if not folder.parent.is_dir():
        raise SceneArgumentError(f"there is no folder {folder.parent}; create it first")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        raise SceneArgumentError(f"{partial} is left over from an interrupted run; remove it first")
    try:
        _write_splits(partial, splits, seed=seed, size=size, density=density, progress=progress)
        (partial / "classes.json").write_text(_classes_json(), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_splits(
    root: Path,
    splits: Mapping[str, int],
    *,
    seed: int,
    size: tuple[int, int],
    density: float | None,
    progress: Progress | None,
) -> None:
    number = 0
    for split, count in splits.items():
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        stems = [f"scene_{number + k:06d}" for k in range(count)]
        for stem in stems:
            sample = scene_sample(seed, number, size=size, density=density)
            _write_png(images / f"{stem}.png", sample.rgb[..., ::-1])
            _write_png(labels / f"{stem}.png", sample.labels)
            number += 1
            if progress:
                progress(number)
        (root / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """`pixels`: blue first, or grey. Encoded in memory: OpenCV's own writing fails silently."""
    _, encoded = packages.opencv().imencode(".png", np.ascontiguousarray(pixels))
    path.write_bytes(encoded.tobytes())


def _classes_json() -> str:
    classes = [
        {"id": number, "name": name, "color": PALETTE[number].tolist()} for number, name in enumerate(CLASS_NAMES)
    ]
    # Void is declared although no label has it: readers of CamVid expect the entry.
    classes.append({"id": IGNORE_ID, "name": "void", "color": [0, 0, 0]})
    return json.dumps({"classes": classes, "ignore": IGNORE_ID}, indent=1) + "\n"
