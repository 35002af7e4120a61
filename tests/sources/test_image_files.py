"""Image files as people have them: which decoders may run, large notes, HEIF, placeholders, links to nothing."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dovit_deploy.errors import SourceError
from dovit_deploy.sources.images import read_image
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame
from tests.placeholders import PLACEHOLDERS

RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
HEIC = struct.pack(">I4s4sI8s", 24, b"ftyp", b"heic", 0, b"mif1heic") + bytes(400)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.data", "a.eps"])
def test_no_decoder_that_starts_a_program_runs(tmp_path, monkeypatch, name):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: started.append(command))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    path = tmp_path / name
    path.write_bytes(EPS)
    with pytest.raises(SourceError, match="formats that are read: AVIF, BMP"):
        read_image(path)
    assert not started


@pytest.mark.parametrize("suffix", [".dds", ".blp", ".ico", ".pcx", ".sgi", ".im", ".icns", ".tga"])
def test_only_the_listed_formats_are_decoded(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    (image.quantize() if suffix == ".blp" else image).save(path)
    path = path.rename(tmp_path / "a.png")
    if suffix == ".tga":
        assert read_image(path).shape == (16, 16, 3)
        return
    with pytest.raises(SourceError, match="cannot be decoded as an image"):
        read_image(path)


def noted(notes: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with these chunks before its pixels and again behind them."""
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in notes
    ]
    header = struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    first, middle, last = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(chunks) + middle + b"".join(chunks) + last


MEBIBYTES = 3 << 20


@pytest.mark.parametrize(
    "note",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(MEBIBYTES))),
        (b"tEXt", b"Comment\0" + b"a" * MEBIBYTES),
        (b"iTXt", b"Comment\0\1\0en\0\0" + zlib.compress(b"a" * MEBIBYTES)),
        (b"iTXt", b"Comment\0\0\0\0\0" + b"a" * MEBIBYTES),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(MEBIBYTES))),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(400_000))),
    ],
    ids=["zTXt", "tEXt", "iTXt packed", "iTXt", "iCCP", "small"],
)
def test_notes_of_any_size_and_number_pass(tmp_path, note):
    path = tmp_path / "a.png"
    path.write_bytes(noted([note] * 120 if len(note[1]) < 1000 else [note]))
    assert np.array_equal(read_image(path), RGB)


def test_a_small_note_keeps_its_orientation_beside_a_large_one(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(
        "XML:com.adobe.xmp",
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>',
    )
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, pnginfo=notes)
    turned = read_image(path)
    assert turned.shape == (7, 5, 3)
    notes.add_text("Comment", "a" * MEBIBYTES, zip=True)
    Image.fromarray(RGB).save(path, pnginfo=notes)
    assert np.array_equal(read_image(path), turned)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif", "a.png"])
def test_colour_profiles_of_any_size_pass(tmp_path, name):
    path = tmp_path / name
    profile = np.random.default_rng(2).integers(0, 256, 2 * MEBIBYTES // 3, dtype=np.uint8).tobytes()
    Image.fromarray(RGB).save(path, icc_profile=profile)
    assert read_image(path).shape == (5, 7, 3)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg", "a.mp4", "a.mov", "a.data"])
def test_heif_is_refused_with_the_remedy_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(SourceError, match=r"a HEIF image \(HEIC\), which is not read; convert it"):
        open_source(str(tmp_path / name))


def test_heif_in_a_folder_fails_and_is_not_passed_over(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(HEIC)
    Image.fromarray(RGB).save(tmp_path / "b.png")
    failed, good = open_source(str(tmp_path))
    assert "HEIF" in failed.message and good.rgb.shape == (5, 7, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4", "a.data"])
@pytest.mark.parametrize("kind", PLACEHOLDERS)
def test_placeholders_are_called_what_they_are(tmp_path, name, kind):
    content, words = PLACEHOLDERS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as refusal:
        open_source(str(tmp_path / name))
    assert words in str(refusal.value)


def test_a_link_to_nothing_is_an_image_that_failed(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    good, failed = open_source(str(tmp_path))
    assert isinstance(failed, FailedFrame) and "b.png: no such file (a link to nothing)" in failed.message
    assert good.source.endswith("a.png")


def test_damaged_avif_is_a_failure_of_its_own(tmp_path):
    path = tmp_path / "a.avif"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    for keep in range(20, len(data), 20):
        path.write_bytes(data[:keep])
        with pytest.raises(SourceError, match=r"a\.avif"):
            read_image(path)


def test_an_image_named_as_a_video_is_read_as_an_image(tmp_path):
    lying = np.zeros((16, 32, 3), dtype=np.uint8)
    lying[:, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "a.jpg", exif=exif)
    (frame,) = open_source(str((tmp_path / "a.jpg").rename(tmp_path / "a.mp4")))
    assert frame.rgb.shape == (32, 16, 3) and frame.rgb[4, 8, 0] > 200
