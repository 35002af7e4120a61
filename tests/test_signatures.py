"""First bytes: placeholders of clones and downloads, HEIF, and images under the names of videos."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.signatures import head_of, is_heif, is_heif_brand, is_still_image, placeholder_for
from tests.placeholders import PLACEHOLDERS


@pytest.mark.parametrize("kind", PLACEHOLDERS)
def test_a_placeholder_is_called_what_it_is(tmp_path, kind):
    content, words = PLACEHOLDERS[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert placeholder_for(path).startswith(words)


@pytest.mark.parametrize("content", [b"", b"version 2", b"<svg></svg>", b'<?xml version="1.0"?><note/>', b"\0" * 99])
def test_other_content_is_left_to_its_reader(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert placeholder_for(path) is None and not is_heif(path) and not is_still_image(path)


def test_what_cannot_be_read_has_no_first_bytes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", "nul\0byte"):
        assert head_of(path) == b""


def test_heif_is_told_from_avif_by_its_brands():
    assert is_heif_brand(b"heic", b"") and is_heif_brand(b"mif1", b"mif1heic") and is_heif_brand(b"msf1", b"hevc")
    assert not is_heif_brand(b"mif1", b"miafavif") and not is_heif_brand(b"avif", b"mif1avif")
    assert not is_heif_brand(b"isom", b"isommp41")


def test_avif_as_pillow_writes_it_is_not_heif(tmp_path):
    path = tmp_path / "a.avif"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    assert not is_heif(path)
