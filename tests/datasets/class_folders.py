"""A small data set of a classifier: class folders of coloured noise, each class around a colour of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_class_folders(
    root: Path, *, folders: Sequence[str] = ("a", "b", "c"), images: int = 3, split: str = "val", size=(60, 80)
) -> Path:
    """`images` images for each of `folders`; a class's colour depends on its folder's name alone."""
    for folder in folders:
        target = root / split / folder
        target.mkdir(parents=True)
        draw = np.random.default_rng(list(folder.encode()))
        base = draw.integers(40, 215, 3)
        for number in range(images):
            noise = draw.integers(-40, 40, (*size, 3))
            Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)).save(target / f"{folder}_{number}.png")
    return root
