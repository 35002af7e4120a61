"""One reader of images: whoever opens a file, it is turned, scaled and converted alike."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.calibrate.images import FolderImages
from dovit_deploy.datasets.dataset import read_rgb
from dovit_deploy.datasets.open import dataset_from_path, labelled_images_from_path
from dovit_deploy.sources.images import read_image
from dovit_deploy.sources.open import open_source
from tests.datasets.labelled_folder import ade20k_folder
from tests.paths import ROOT

RGB = np.random.default_rng(2).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def saved(path: Path, kind: str) -> Path:
    image = Image.fromarray(RGB)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
    elif kind == "deep":
        Image.fromarray(RGB[..., 0].astype(np.uint16) << 8).save(path)
    elif kind == "palette":
        image.quantize(16).save(path)
    else:
        image.convert(kind).save(path, "TIFF" if kind == "CMYK" else "PNG")
    return path


@pytest.mark.parametrize("kind", ["RGB", "turned", "deep", "palette", "RGBA", "LA", "1", "CMYK"])
def test_all_see_the_same_image(tmp_path, kind):
    root = ade20k_folder(tmp_path / "set", values=(0, 1, 2))
    folder = root / "images" / "validation"
    for path in folder.iterdir():
        path.unlink()
    for number in (1, 2):
        saved(folder / f"ADE_{number}.png", kind)
    expected = read_image(folder / "ADE_1.png")
    if kind == "turned":
        np.testing.assert_array_equal(expected, RGB[::-1, ::-1])
    # Class folders: the folder of images stands for a class.
    classes = tmp_path / "named" / "val" / "a"
    classes.mkdir(parents=True)
    saved(classes / "1.png", kind)
    with open_source(str(folder)) as source:
        frame = next(iter(source))
    seen = {
        "run, bench": frame.rgb,
        "eval, train, calibrate": dataset_from_path(root, "val").sample(0).rgb,
        "calibrate without labels": FolderImages(folder).image(0).rgb,
        "class folders": labelled_images_from_path(tmp_path / "named", "val").sample(0).rgb,
        "by name": read_rgb(folder / "ADE_1.png"),
    }
    for rgb in seen.values():
        np.testing.assert_array_equal(rgb, expected)


def test_no_other_file_opens_images():
    opening = re.compile(r"\bimread\b|\bimdecode\b|pillow\(\)\.open|pillow\.open|Image\.open")
    found = {path.name for path in (ROOT / "dovit_deploy").rglob("*.py") if opening.search(path.read_text())}
    # A part of a batch holds masks that a worker wrote.
    assert found == {"images.py", "recorded.py"}
