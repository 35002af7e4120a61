"""`dovit run --save coco,cityscapes`: the masks again, as other tools read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.runtime.cityscapes import label_ids
from tests.conftest import Run
from tests.runtime.test_coco import decoded, painted

NAMES = ("road", "building", "car", "sky", "person")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, one of them in a folder below."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path / "in"


def test_both_hold_what_the_masks_hold(dovit: Run, tiny_bundle_path: Path, images: Path, tmp_path: Path) -> None:
    command = ("run", "in", "--recursive", "--bundle", tiny_bundle_path, "-o", "out", "--classes", "names.txt")
    done = dovit(*command, "--save", "masks,coco,cityscapes")
    assert done.returncode == 0, done.stderr
    assert "out: masks/, cityscapes/, coco.json, frames.jsonl, summary.json" in done.stdout
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in coco["categories"]] == list(enumerate(NAMES))
    assert [image["file_name"] for image in coco["images"]] == ["in/a.png", "in/sub/b.png"]
    for image, name in zip(coco["images"], ("a", "sub/b"), strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        whole = np.full(mask.shape, 255)
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                segmentation = annotation["segmentation"]
                whole[painted(decoded(segmentation["counts"]), tuple(segmentation["size"]))] = annotation["category_id"]
        np.testing.assert_array_equal(whole, mask)
        ids = np.asarray(Image.open(tmp_path / "out" / "cityscapes" / f"{name}.png"))
        np.testing.assert_array_equal(ids, label_ids(NAMES)[mask])
    # What a run wrote is a run's to replace.
    assert dovit(*command, "--save", "coco", "--overwrite").returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"coco.json", "frames.jsonl", "summary.json"}


def test_classes_that_are_not_cityscapes_are_refused(
    dovit: Run, tiny_bundle_path: Path, classifier_bundle_path: Path, images: Path, tmp_path: Path
) -> None:
    done = dovit("run", "in", "--bundle", tiny_bundle_path, "-o", "out", "--save", "cityscapes")
    assert done.returncode == 2 and "the class 'class 0' (and 4 more) is none of Cityscapes'" in done.stderr
    for kind in ("coco", "cityscapes"):
        done = dovit("run", "in", "--bundle", classifier_bundle_path, "-o", "out", "--save", kind)
        assert done.returncode == 2 and f"--save: '{kind}' given" in done.stderr
    assert not (tmp_path / "out").exists()
