"""A data set of a few small images in a folder: coloured rectangles, each colour a class, and a void border."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = [(40, 60, 200), (200, 60, 40), (60, 180, 60), (220, 220, 40)]
VOID = 11


def write_folder(
    root: Path, *, images: int = 5, size: tuple[int, int] = (40, 56), splits: tuple[str, ...] = ("train",)
) -> Path:
    """Write the splits of a data set with four classes under `root`, and return it."""
    classes = [{"id": i, "name": f"class {i}", "color": list(colour)} for i, colour in enumerate(COLOURS)]
    void = {"id": VOID, "name": "void", "color": [0, 0, 0]}
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"classes": [*classes, void], "ignore": VOID}))
    for split in splits:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        stems = [f"{split}_{number}" for number in range(images)]
        (root / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for number, stem in enumerate(stems):
            rgb, label = image(size, seed=number)
            Image.fromarray(rgb).save(root / "images" / split / f"{stem}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{stem}.png")
    return root


def image(size: tuple[int, int], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) and label (H, W), uint8."""
    draw = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    for value in (1, 2, 3):
        top, left = (int(draw.integers(0, side - 12)) for side in size)
        label[top : top + 12, left : left + 16] = value
    rgb = np.array(COLOURS)[label] + draw.normal(0, 12, (*size, 3))
    label[:2] = VOID
    return np.clip(rgb, 0, 255).astype(np.uint8), label
