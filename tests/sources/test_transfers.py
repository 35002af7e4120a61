"""HDR is named once, whatever reads the file and wherever the file says it."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dovit_deploy import packages
from dovit_deploy.sources import opencv
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.parameter_sets import transfer_of_avcc, transfer_of_hvcc
from dovit_deploy.sources.transfers import hdr_remark, transfer_of_file
from tests.sources.clips import numbered

PQ, HLG, BT709 = 16, 18, 1


def clip(path: Path, *, codec: str, transfer: int, options: dict[str, str] | None = None) -> Path:
    """A clip whose encoder is told the transfer characteristic."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_trc = transfer
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", {"x264-params": "colorprim=bt2020"}),
        (".mp4", "libx264", {"profile": "baseline"}),
        (".mov", "libx265", {"x265-params": "log-level=none"}),
        (".mp4", "libx265", {"x265-params": "log-level=none:scaling-list=default:bframes=4:temporal-layers=3"}),
        (".mkv", "libx264", {}),
    ],
)
def test_what_the_header_says_is_what_the_decoder_says(tmp_path, suffix, codec, options):
    for transfer in (PQ, HLG, BT709):
        path = clip(tmp_path / f"a{suffix}", codec=codec, transfer=transfer, options=options)
        assert transfer_of_file(path) == transfer
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).color_trc == transfer


def remarks(path: Path) -> list[str]:
    with open_source(str(path)) as source:
        list(source)
    return [line for line in source.warnings if "HDR" in line]


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "PQ"), (HLG, "HLG"), (BT709, None)])
def test_hdr_videos_are_named_by_both_readers(tmp_path, monkeypatch, transfer, name):
    path = clip(tmp_path / "a.mp4", codec="libx264", transfer=transfer)
    by_pyav = remarks(path)
    # OpenCV prepares for seconds to convert HDR, so it reads an SDR clip here, whose header is said to be another.
    plain = clip(tmp_path / "plain.mp4", codec="libx264", transfer=BT709)
    monkeypatch.setattr(packages, "pyav", lambda: None)
    monkeypatch.setattr(opencv, "transfer_of_file", lambda _: transfer_of_file(path))
    by_opencv = remarks(plain)
    assert len(by_pyav) == len(by_opencv) == (name is not None)
    assert all(f"HDR ({name})" in line for line in (*by_pyav, *by_opencv))


@pytest.mark.parametrize("box", [b"nclx", b"nclc"])
def test_the_box_of_a_container_takes_precedence(tmp_path, box):
    path = clip(tmp_path / "a.mp4", codec="libx264", transfer=BT709)
    assert transfer_of_file(path) == BT709
    data = path.read_bytes()
    colour = struct.pack(">4s4sHHH", b"colr", box, 9, HLG, 9)
    at = data.index(b"moov") - 4
    size = int.from_bytes(data[at : at + 4])
    extra = struct.pack(">I", len(colour) + 4) + colour
    path.write_bytes(
        data[:at] + struct.pack(">I", size + len(extra)) + data[at + 4 : at + size] + extra + data[at + size :]
    )
    assert transfer_of_file(path) == HLG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def hdr_png(path: Path, *, transfer: int, behind_pixels: bool = False) -> Path:
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(path)
    data = path.read_bytes()
    mark = b"IEND" if behind_pixels else b"IDAT"
    at = data.index(mark) - 4
    path.write_bytes(data[:at] + chunk(b"cICP", bytes([9, transfer, 0, 1])) + data[at:])
    return path


def test_hdr_images_are_named_once_a_folder(tmp_path):
    for number, transfer in enumerate((BT709, PQ, HLG)):
        hdr_png(tmp_path / f"{number}.png", transfer=transfer)
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 3
    assert [line.split(",")[0] for line in source.warnings] == [f"{tmp_path / '1.png'}: HDR (PQ)"]
    with open_source(str(tmp_path / "2.png")) as source:
        assert "HDR (HLG)" in source.warnings[0]


def test_what_says_nothing_says_nothing(tmp_path):
    assert transfer_of_file(hdr_png(tmp_path / "a.png", transfer=PQ, behind_pixels=True)) is None
    assert transfer_of_file(tmp_path / "absent") is None
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.avif")
    assert hdr_remark("a", transfer_of_file(tmp_path / "a.avif")) is None
    assert hdr_remark("a", None) is None and hdr_remark("a", 1) is None


def test_damaged_headers_say_nothing_or_something_but_never_fail(tmp_path):
    random = np.random.default_rng(0)
    for codec in ("libx264", "libx265"):
        path = clip(tmp_path / f"{codec}.mp4", codec=codec, transfer=PQ, options={"x265-params": "log-level=none"})
        data = path.read_bytes()
        mark, read = (b"avcC", transfer_of_avcc) if codec == "libx264" else (b"hvcC", transfer_of_hvcc)
        record = data.partition(mark)[2]
        assert read(record) == PQ
        for length in range(0, 200, 3):
            read(record[:length])
        for _ in range(300):
            harmed = bytearray(record[:400])
            harmed[random.integers(0, 120)] = random.integers(0, 256)
            read(bytes(harmed))
        path.write_bytes(data[: data.index(b"moov") + 30])
        assert transfer_of_file(path) is None
