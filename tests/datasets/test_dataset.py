"""Our own layout: samples are what was written, and every fault names its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from tests.datasets.labelled_folder import VOID, noise, write_labelled


@pytest.fixture
def root(tmp_path):
    return write_labelled(tmp_path / "set", images=5, size=(40, 56), classes=4, split="train")


def refused(root, *, contains, sample=None):
    with pytest.raises(DatasetError, match=contains):
        data = dataset_from_path(root, "train")
        if sample is not None:
            data.sample(sample)


def test_a_sample_is_what_was_written_with_void_made_ignore(root):
    data = dataset_from_path(root, "train")
    rgb, label = noise((40, 56), classes=4, seed=2)
    sample = data.sample(2)
    assert len(data) == 5
    assert sample.stem == "drive_002"
    np.testing.assert_array_equal(sample.rgb, rgb)
    np.testing.assert_array_equal(sample.label, np.where(label == VOID, IGNORE, label))
    assert data.classes.names == ("class 0", "class 1", "class 2", "class 3")
    assert data.classes.palette == tuple((9 * number, 0, 0) for number in range(4))


def test_indexed_labels_are_read_as_indices_not_colours(root):
    path = root / "labels" / "train" / "drive_001.png"
    before = dataset_from_path(root, "train").sample(1).label
    indexed = Image.fromarray(np.array(Image.open(path)), mode="P")
    indexed.putpalette([200, 10, 10] * 256)
    indexed.save(path)
    np.testing.assert_array_equal(dataset_from_path(root, "train").sample(1).label, before)


def test_class_frequencies_are_shares_of_labelled_pixels(root):
    data = dataset_from_path(root, "train")
    labels = np.concatenate([data.sample(number).label.ravel() for number in range(5)])
    known = labels[labels != IGNORE]
    np.testing.assert_allclose(data.class_frequencies(), np.bincount(known, minlength=4) / len(known))


def test_an_empty_list_is_refused(root):
    (root / "train.txt").write_text("\n\n")
    refused(root, contains=r"train\.txt: lists no image")


def test_a_missing_list_is_refused(root):
    (root / "train.txt").unlink()
    refused(root, contains=r"train\.txt: cannot be read")


def test_a_missing_image_is_named(root):
    (root / "images" / "train" / "drive_003.png").unlink()
    refused(root, contains=r"images.train: no image for 'drive_003'")


def test_two_images_of_one_stem_are_refused(root):
    Image.new("RGB", (56, 40)).save(root / "images" / "train" / "drive_003.webp")
    refused(root, contains=r"drive_003\.webp: drive_003\.png has the same stem")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_with_too_many_pixels_is_named_before_it_is_decoded(root, kind):
    Image.new("1", (13000, 13000)).save(root / kind / "train" / "drive_000.png")
    refused(root, contains=rf"{kind}.train.drive_000\.png: 13000x13000 is 169000000 pixels, more than the", sample=0)


def test_images_are_read_as_run_reads_them(root):
    """One reader: a photograph is turned upright by its EXIF data, and 16 bits become 8."""
    lying = np.zeros((56, 40, 3), np.uint8)
    lying[0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(root / "images" / "train" / "drive_000.png", exif=exif)
    rgb = dataset_from_path(root, "train").sample(0).rgb
    assert rgb.shape == (40, 56, 3) and (rgb[:, -1] == 200).all() and not rgb[:, :-1].any()
    Image.fromarray(np.full((40, 56), 0xABCD, np.uint16)).save(root / "images" / "train" / "drive_001.png")
    assert (dataset_from_path(root, "train").sample(1).rgb == 0xAB).all()


def test_a_missing_label_is_named(root):
    (root / "labels" / "train" / "drive_003.png").unlink()
    refused(root, contains=r"drive_003\.png: missing label")


def test_a_label_of_another_size_is_named(root):
    Image.new("L", (20, 30)).save(root / "labels" / "train" / "drive_000.png")
    refused(root, contains=r"drive_000\.png: 20x30 pixels, its image has 56x40", sample=0)


def test_an_id_out_of_range_is_named(root):
    Image.new("L", (56, 40), 7).save(root / "labels" / "train" / "drive_000.png")
    refused(root, contains=r"drive_000\.png: pixel value 7; class ids are 0\.\.3", sample=0)


def test_a_colour_label_is_refused(root):
    Image.new("RGB", (56, 40)).save(root / "labels" / "train" / "drive_000.png")
    refused(
        root,
        contains=r"drive_000\.png: a label must be a grey or indexed PNG",
        sample=0,
    )


@pytest.mark.parametrize("cut", [0, 60], ids=["empty", "cut short"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_an_unreadable_file_is_named(root, kind, cut):
    path = root / kind / "train" / "drive_000.png"
    path.write_bytes(path.read_bytes()[:cut])
    refused(root, contains=rf"{kind}.train.drive_000\.png: cannot be decoded", sample=0)


def test_a_set_without_any_labelled_pixel_is_refused(root):
    for path in (root / "labels" / "train").iterdir():
        Image.new("L", (56, 40), VOID).save(path)
    with pytest.raises(DatasetError, match="no labelled pixel"):
        dataset_from_path(root, "train").class_frequencies()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"classes": []}),
        json.dumps({"classes": [{"id": 1, "name": "a", "color": [0, 0, 0]}]}),
        json.dumps({"classes": [{"id": 0}]}),
        json.dumps({"classes": [{"id": 0, "name": "a", "color": [0, 0, 256]}]}),
    ],
    ids=["not JSON", "an empty list", "no class", "a gap", "no name", "colour out of range"],
)
def test_faults_of_the_class_list_are_named(root, content):
    (root / "classes.json").write_text(content)
    refused(root, contains=r"classes\.json")
