"""Labels are the numbers in the file, whatever its bit depth and form; what changes numbers is refused by its name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.datasets.dataset import IGNORE, plain_codes, read_label
from dovit_deploy.datasets.label_values import stored_values
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import DatasetError
from tests.datasets.labelled_folder import write_labelled

GREY, INDEXED = 0, 3


def png(values: np.ndarray, *, bits: int, kind: int) -> bytes:
    """A PNG that stores exactly these values."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    planes = (values[:, :, None].astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1)
    palette = chunk(b"PLTE", bytes(range(3 * min(1 << bits, 80)))) if kind == INDEXED else b""
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def numbers(bits: int) -> np.ndarray:
    """(5, 7): values of so many bits, the largest among them; class ids below 80."""
    values = np.random.default_rng(bits).integers(0, min(1 << bits, 80), (5, 7))
    values[2, 3] = min(1 << bits, 80) - 1
    return values


@pytest.mark.parametrize(
    ("bits", "kind"),
    [*((bits, GREY) for bits in (1, 2, 4, 8, 16)), *((bits, INDEXED) for bits in (1, 2, 4, 8))],
)
def test_png_labels_are_raw_ids(tmp_path, bits, kind):
    path = tmp_path / "a.PNG"
    path.write_bytes(png(numbers(bits), bits=bits, kind=kind))
    np.testing.assert_array_equal(stored_values(path), numbers(bits))
    np.testing.assert_array_equal(read_label(path, plain_codes(80, None)), numbers(bits))


def tiff(values: np.ndarray, *, bits: int, white_is_zero: bool) -> bytes:
    """An uncompressed grey TIFF that stores exactly these values."""
    height, width = values.shape
    planes = (values[:, :, None] >> np.arange(bits)[::-1]) & 1
    pixels = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_labels_are_raw_ids(tmp_path, bits, white_is_zero):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(numbers(bits), bits=bits, white_is_zero=white_is_zero))
    np.testing.assert_array_equal(stored_values(path), numbers(bits))


def test_wide_labels_are_refused_by_a_value_that_is_no_class(tmp_path):
    path = tmp_path / "a.png"
    values = numbers(16)
    values[0, 0], values[0, 1] = 255, 79
    path.write_bytes(png(values, bits=16, kind=GREY))
    assert read_label(path, plain_codes(80, None))[0, 0] == IGNORE
    values[1, 1] = 26_001
    path.write_bytes(png(values, bits=16, kind=GREY))
    with pytest.raises(DatasetError, match=r"a\.png: pixel value 26001; class ids are 0\.\.79"):
        read_label(path, plain_codes(80, None))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("JPEG", "a.png"), ("JPEG", "a.jpg"), ("WEBP", "a.png"), ("AVIF", "a.png"), ("JPEG2000", "a.png")],
)
def test_what_changes_numbers_is_refused_by_its_name(tmp_path, kind, name):
    Image.fromarray(numbers(8).astype(np.uint8)).save(tmp_path / name, format=kind)
    with pytest.raises(DatasetError, match=f"this label is a {kind}, which changes class ids; save labels as PNG"):
        read_label(tmp_path / name, plain_codes(80, None))


def test_suffixes_of_labels_and_images_in_any_case(tmp_path):
    root = write_labelled(tmp_path / "set", images=3, size=(40, 56), classes=4, split="train")
    before = [dataset_from_path(root, "train").sample(number).label for number in range(3)]
    for kind in ("images", "labels"):
        for path in (root / kind / "train").iterdir():
            path.rename(path.with_suffix(".PNG"))
    data = dataset_from_path(root, "train")
    for number in range(3):
        np.testing.assert_array_equal(data.sample(number).label, before[number])


def test_a_jpeg_in_place_of_a_label_is_not_called_missing(tmp_path):
    root = write_labelled(tmp_path / "set", images=3, size=(40, 56), classes=4, split="train")
    path = root / "labels" / "train" / "drive_001.png"
    Image.open(path).save(path.with_suffix(".JPG"), format="JPEG")
    path.unlink()
    with pytest.raises(DatasetError, match=r"drive_001\.JPG: this label is a JPEG"):
        dataset_from_path(root, "train").sample(1)


def test_cityscapes_files_with_their_suffix_in_capitals(tmp_path):
    for folder, end in (("leftImg8bit", "_leftImg8bit"), ("gtFine", "_gtFine_labelIds")):
        (tmp_path / folder / "val" / "city").mkdir(parents=True)
        image = Image.new("RGB" if folder == "leftImg8bit" else "L", (8, 6), 7)
        image.save(tmp_path / folder / "val" / "city" / f"one{end}.PNG")
    data = dataset_from_path(tmp_path, "val")
    assert data.stems == ("one",) and (data.sample(0).label == 0).all()
