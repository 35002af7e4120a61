"""A small labelled data set for a tiny bundle: images of coloured noise, labels of blocks, a void row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 200


def noise(size: tuple[int, int], *, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) and label (H, W), uint8; every class occurs, the first row is void."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    rgb = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))
    cells = draw.permutation(np.arange(24) % classes).reshape(4, 6).astype(np.uint8)
    label = np.array(Image.fromarray(cells).resize(size[::-1], Image.Resampling.NEAREST))
    label[0] = VOID
    return rgb, label


def write_labelled(
    root: Path,
    *,
    images: int = 4,
    size: tuple[int, int] = (60, 80),
    classes: int = 5,
    names: Sequence[str] | None = None,
    split: str = "val",
) -> Path:
    """Write one split in the package's own layout; its classes have the names of those of tiny bundles."""
    names = [f"class {number}" for number in range(classes)] if names is None else names
    entries = [{"id": number, "name": name, "color": [9 * number, 0, 0]} for number, name in enumerate(names)]
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": entries, "ignore": VOID}))
    stems = [f"drive_{number:03d}" for number in range(images)]
    (root / f"{split}.txt").write_text("\n".join(stems))
    for number, stem in enumerate(stems):
        rgb, label = noise(size, classes=classes, seed=number)
        Image.fromarray(rgb).save(root / "images" / split / f"{stem}.png")
        Image.fromarray(label).save(root / "labels" / split / f"{stem}.png")
    return root


def ade20k_folder(root: Path, *, values: Sequence[int], size: tuple[int, int] = (6, 8)) -> Path:
    """Two images a split in the folders of ADE20K, whose label maps repeat `values`."""
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", size[::-1], (90, 90, 90)).save(root / "images" / split / f"ADE_{number}.jpg")
            label = np.resize(np.array(values, np.uint8), size)
            Image.fromarray(label).save(root / "annotations" / split / f"ADE_{number}.png")
    return root
