"""Image files: every mode, orientation and fault, and many of them as a source."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dovit_deploy.errors import SourceError
from dovit_deploy.sources.images import (
    IMAGE_SUFFIXES,
    is_image,
    orientation_from_matrix,
    read_image,
    upright,
    upright_size,
)

RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """Pillow's warnings would reach the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga"])
def test_lossless_formats_are_read_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    rgb = read_image(saved(tmp_path, Image.fromarray(RGB), name, **options))
    assert np.array_equal(rgb, RGB)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous and rgb.flags.writeable


def test_jpeg_keeps_the_order_of_colours(tmp_path):
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[:] = (250, 10, 30)
    rgb = read_image(saved(tmp_path, Image.fromarray(red), "a.jpg", quality=95))
    assert np.abs(rgb.astype(int) - red).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_images(tmp_path, shape):
    rgb = np.full((*shape, 3), 77, dtype=np.uint8)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(rgb))), rgb)


def test_grey_and_one_bit(tmp_path):
    grey = RGB[:, :, 0]
    rgb = read_image(saved(tmp_path, Image.fromarray(grey)))
    assert np.array_equal(rgb, np.stack([grey] * 3, axis=2))
    bits = read_image(saved(tmp_path, Image.fromarray(grey > 127)))
    assert np.array_equal(bits[:, :, 1], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    grey = RGB[:, :, 0]
    for factor in (257, 256):
        rgb = read_image(saved(tmp_path, Image.fromarray(grey.astype(np.uint16) * factor), name))
        assert np.array_equal(rgb, np.stack([grey] * 3, axis=2))


def test_sixteen_bit_colour_is_scaled(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(
        png(7, 5, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257))
    )
    assert np.array_equal(read_image(path), RGB)


def test_floats_and_wide_integers(tmp_path):
    grey = RGB[:, :, 0]
    stacked = np.stack([grey] * 3, axis=2)
    unit = Image.fromarray((grey / 255).astype(np.float32))
    assert np.array_equal(read_image(saved(tmp_path, unit, "f.tif")), stacked)
    bytes_as_float = Image.fromarray(grey.astype(np.float32))
    assert np.array_equal(read_image(saved(tmp_path, bytes_as_float, "g.tif")), stacked)
    wide = Image.fromarray(grey.astype(np.int32) << 23)
    assert np.array_equal(read_image(saved(tmp_path, wide, "w.tif")), stacked)
    with pytest.raises(SourceError, match="8 or 16 bits"):
        read_image(saved(tmp_path, Image.fromarray(np.full((2, 2), -1.0, dtype=np.float32)), "n.tif"))


def test_palettes_with_and_without_transparency(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, palette)), expected)
    assert np.array_equal(read_image(saved(tmp_path, palette, transparency=3)), expected)
    assert np.array_equal(read_image(saved(tmp_path, palette, transparency=bytes(range(16)))), expected)


def test_alpha_is_dropped_not_blended(tmp_path):
    alpha = np.full((5, 7, 1), 0, dtype=np.uint8)
    rgba = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    assert np.array_equal(read_image(saved(tmp_path, rgba)), RGB)
    grey_alpha = Image.fromarray(np.concatenate([RGB[:, :, :1], alpha], axis=2), mode=None)
    assert grey_alpha.mode == "LA"
    assert np.array_equal(read_image(saved(tmp_path, grey_alpha)), np.repeat(RGB[:, :, :1], 3, axis=2))


def test_cmyk_is_converted(tmp_path):
    cyan = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert read_image(saved(tmp_path, cyan, "c.tif"))[0, 0].tolist() == [0, 255, 255]
    near = read_image(saved(tmp_path, cyan, "c.jpg", quality=95))[0, 0]
    assert np.abs(near.astype(int) - (0, 255, 255)).max() <= 4


@pytest.mark.parametrize("name", ["e.jpg", "e.png", "e.webp", "e.tif"])
def test_exif_turns_the_image_upright(tmp_path, name):
    lying = np.zeros((16, 32, 3), dtype=np.uint8)
    lying[:, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = read_image(saved(tmp_path, Image.fromarray(lying), name, exif=exif))
    assert rgb.shape == (32, 16, 3)
    assert rgb[4, 8, 0] > 200 and rgb[28, 8, 0] < 50


def test_damaged_exif_does_not_hide_the_pixels(tmp_path):
    warnings.simplefilter("ignore")
    path = saved(tmp_path, Image.fromarray(RGB), "x.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(path), RGB)


def png(width, height, depth, colour, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(50_000, 50_000, 8, 2, b"\0"))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(SourceError) as refusal:
        read_image(path)
    for part in ("bomb.png", "50000x50000", "150000000", "--max-pixels 2500000000"):
        assert part in str(refusal.value)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_inclusive(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    assert read_image(path, max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(SourceError, match="7x5 is 35 pixels, more than the 34 allowed"):
        read_image(path, max_pixels=34)


def test_the_limit_is_ours_even_where_pillow_has_a_lower_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert read_image(saved(tmp_path, Image.fromarray(RGB))).shape == (5, 7, 3)
    assert Image.MAX_IMAGE_PIXELS == 4


@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.webp", "t.tif", "t.bmp"])
def test_truncated_files_are_refused(tmp_path, name):
    warnings.simplefilter("ignore")
    noise = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    data = path.read_bytes()
    for keep in (len(data) // 2, 30, 3, 0):
        path.write_bytes(data[:keep])
        with pytest.raises(SourceError, match=name):
            read_image(path)


def test_what_is_no_image(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("not an image at all\n" * 20)
    with pytest.raises(SourceError, match=r"notes\.jpg: cannot be decoded as an image") as refusal:
        read_image(text)
    assert "\n" not in str(refusal.value)
    with pytest.raises(SourceError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(SourceError):
        read_image(tmp_path)
    assert not is_image(text)


def test_every_byte_of_a_header_may_be_wrong(tmp_path):
    """Whatever the decoder stumbles over, it is a SourceError or an image, never another exception."""
    for name in ("f.png", "f.jpg", "f.tif", "f.webp", "f.bmp", "f.tga", "f.ppm"):
        path = saved(tmp_path, Image.fromarray(RGB), name)
        data = path.read_bytes()
        random = np.random.default_rng(3)
        for _ in range(40):
            broken = bytearray(data)
            for position in random.integers(0, min(len(data), 200), 3):
                broken[position] = random.integers(0, 256)
            path.write_bytes(broken)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    rgb = read_image(path, max_pixels=1_000_000)
                except SourceError:
                    continue
            assert rgb.ndim == 3 and rgb.shape[2] == 3


def test_suffixes_are_lower_case_with_their_dot():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("orientation", range(9))
def test_every_turn_is_that_of_pillow(orientation):
    image = Image.fromarray(IMAGE)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    turned = upright(IMAGE, orientation)
    assert np.array_equal(turned, expected)
    assert turned.flags.c_contiguous
    assert upright_size(2, 3, orientation) == turned.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_matrix_means_what_it_does_to_pixels(orientation):
    """The matrix is read off from where `upright` sends the three corners, then recognised again."""
    marks = np.zeros((5, 5, 3), dtype=np.uint8)
    marks[0, 0], marks[0, 4], marks[4, 0] = 1, 2, 3
    turned = upright(marks, orientation)[:, :, 0]
    y0, x0 = np.argwhere(turned == 1)[0]
    right = (np.argwhere(turned == 2)[0] - (y0, x0)) // 4
    down = (np.argwhere(turned == 3)[0] - (y0, x0)) // 4
    one = 1 << 16
    matrix = (right[1] * one, right[0] * one, down[1] * one, down[0] * one)
    assert orientation_from_matrix(*(int(value) for value in matrix)) == orientation


def test_an_oblique_matrix_goes_to_the_nearest_turn():
    cos, sin = 65000, 8000
    assert orientation_from_matrix(cos, sin, -sin, cos) == 1
    assert orientation_from_matrix(sin, cos, -cos, sin) == 6
