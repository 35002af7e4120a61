"""`dovit run` on files as people have them, through the real command line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.conftest import Run
from tests.placeholders import PLACEHOLDERS

HEIC = struct.pack(">I4s4sI8s", 24, b"ftyp", b"heic", 0, b"mif1heic") + bytes(400)


def test_a_folder_that_mixes_good_and_bad_images(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "a_turned.jpg", exif=exif)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a" * (2 << 20), zip=True)
    image.save(folder / "b_noted.PNG", pnginfo=notes)
    Image.fromarray(np.full((40, 56), 40_000, np.uint16)).save(folder / "c_deep.png")
    (folder / "d_phone.heic").write_bytes(HEIC)
    (folder / "e_pointer.jpg").write_bytes(PLACEHOLDERS["lfs"][0])
    (folder / "f_page.png").write_bytes(PLACEHOLDERS["page"][0])
    (folder / "g_script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (folder / "h_link.jpg").symlink_to("nowhere")
    image.save(folder / "i_cut.avif")
    (folder / "i_cut.avif").write_bytes((folder / "i_cut.avif").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")

    done = dovit("run", folder, "--bundle", tiny_bundle_path, "-o", "out", "--save", "masks", "--threads", 1)

    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    for words in ("HEIF", "git lfs pull", "an HTML page", "formats that are read", "h_link.jpg", "i_cut.avif"):
        assert words in done.stderr, words
    rows = [json.loads(line) for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()]
    assert [Path(row["source"]).name[0] for row in rows if "latency_ms" in row] == ["a", "b", "c"]
    assert Image.open(tmp_path / "out" / "masks" / "a_turned.png").size == (40, 56)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3


def test_a_kind_that_is_named_twice_is_saved_once(dovit: Run, tiny_bundle_path: Path, tmp_path: Path) -> None:
    Image.new("RGB", (72, 56)).save(tmp_path / "a.png")
    done = dovit("run", "a.png", "--bundle", tiny_bundle_path, "-o", "out", "--save", "masks,masks")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["a.png"]
