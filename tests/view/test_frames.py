"""Frames in any order, and images that were dropped on the page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import OutputFailed, SourceError, UsageError
from dovit_deploy.sources.images import read_image
from dovit_deploy.sources.open import open_source
from dovit_deploy.view import frames as module
from dovit_deploy.view.frames import KEPT_UPLOADS, Uploads, frames_from_source
from tests.sources.clips import make_clip

MOST = 10_000


def opened(text):
    with open_source(str(text)) as source:
        return frames_from_source(str(text), source, max_pixels=MOST)


def png(value: int, size=(4, 6)) -> bytes:
    return bytes(cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1].tobytes())


def test_images_are_read_by_their_number_in_any_order(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(10 * number))
    frames = opened(tmp_path)
    assert frames.count == 3
    for number in (2, 0, 1, 2):
        assert frames.name(number) == str(tmp_path / f"{number}.png") and frames.read(number)[0, 0, 0] == 10 * number
    (tmp_path / "1.png").write_bytes(b"no longer")
    with pytest.raises(SourceError, match=r"1\.png"):
        frames.read(1)


def test_frames_of_a_video_are_sought_by_their_number(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", count=12)
    with open_source(str(clip)) as source:
        wanted = [frame.rgb for frame in source]
    frames = opened(clip)
    assert frames.count == len(wanted) == 12
    for number in (11, 0, 5, 6):
        np.testing.assert_array_equal(frames.read(number), wanted[number])
    assert frames.name(0) == "0.00 s"
    with pytest.raises(SourceError, match="no frame"):
        frames.read(50)


def test_what_cannot_be_gone_back_in_is_refused() -> None:
    class Live:
        """As a camera or a stream says of itself."""

        kind, name, video, count = "live", "camera 0", None, None

    with pytest.raises(UsageError, match=r"camera 0: files alone .* record it first"):
        frames_from_source("0", Live(), max_pixels=MOST)


def test_dropped_images_are_checked_as_files_are_and_the_last_few_stay() -> None:
    uploads = Uploads(max_pixels=MOST)
    keys = [uploads.add(png(number)) for number in range(KEPT_UPLOADS + 1)]
    assert len(set(keys)) == len(keys) and uploads.add(png(0)) == keys[0]
    assert uploads.read(keys[-1])[0, 0, 0] == KEPT_UPLOADS
    # The first was dropped again, so the next two went.
    for gone in keys[1:2]:
        with pytest.raises(SourceError, match="drop it again"):
            uploads.read(gone)
    with pytest.raises(SourceError, match=r"^the image: cannot be decoded as an image; formats that are read: "):
        uploads.add(b"<svg onload=alert(1)>")
    with pytest.raises(SourceError, match="40000 pixels, more than the 10000 allowed"):
        uploads.add(png(0, (200, 200)))


def test_large_images_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 40 * 60 * 3 * 2)
    uploads = Uploads(max_pixels=MOST)
    first, *others = [uploads.add(png(number, (40, 60))) for number in range(3)]
    assert all(uploads.read(key).shape == (40, 60, 3) for key in others)
    with pytest.raises(SourceError, match="drop it again"):
        uploads.read(first)
    # One that is larger alone is there.
    assert uploads.read(uploads.add(png(4, (90, 100)))).shape == (90, 100, 3)


def test_a_disk_without_room_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputFailed, match="cannot write the image: No space left on device"):
        Uploads(max_pixels=MOST).add(png(0))


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    uploads = Uploads(max_pixels=MOST)
    key = uploads.add((tmp_path / "a.jpg").read_bytes())
    assert uploads.read(key).shape == read_image(tmp_path / "a.jpg").shape == (60, 40, 3)
