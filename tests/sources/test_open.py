from __future__ import annotations

import socket
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy import packages
from dovit_deploy.errors import PackageMissing, SourceError, UsageError
from dovit_deploy.sources import containers
from dovit_deploy.sources.open import open_source
from dovit_deploy.sources.source import FailedFrame
from tests.sources.clips import make_clip, numbered


@pytest.fixture
def folder(tmp_path):
    """Five images named out of order, one broken, beside other files."""
    folder = tmp_path / "images"
    (folder / "deeper.png").mkdir(parents=True)
    for index, name in enumerate(["e.png", "b.JPG", "a.png", "d.bmp"]):
        Image.fromarray(numbered(index)).save(folder / name)
    (folder / "c.png").write_text("no image")
    (folder / "notes.txt").write_text("ignored")
    (folder / "._a.png").write_text("ignored as well")
    return folder


def names(frames):
    return [frame.source.rsplit("/", 1)[-1] for frame in frames]


def test_one_image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(numbered(3)).save(path)
    with open_source(str(path)) as source:
        assert (source.kind, source.count, source.video, source.name) == ("images", 1, None, str(path))
        (frame,) = source
    assert np.array_equal(frame.rgb, numbered(3))
    assert (frame.index, frame.time_s, frame.source) == (0, 0, str(path))
    assert frame.decode_ms > 0


def test_one_bad_image_is_known_at_once(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    with pytest.raises(SourceError, match=r"a\.png"):
        open_source(str(path))


def test_an_image_is_known_by_its_bytes_where_the_suffix_says_nothing(tmp_path):
    path = tmp_path / "image.data"
    Image.fromarray(numbered(3)).save(path, format="PNG")
    assert open_source(str(path)).kind == "images"
    clip = make_clip(tmp_path / "clip.mp4", count=2)
    with open_source(str(clip.rename(tmp_path / "clip"))) as source:
        assert source.kind == "video"


def test_a_folder_gives_its_images_by_name_and_goes_on_after_a_bad_one(folder):
    with open_source(str(folder)) as source:
        assert (source.kind, source.count) == ("images", 5)
        frames = list(source)
    assert names(frames) == ["a.png", "b.JPG", "c.png", "d.bmp", "e.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    bad = frames[2]
    assert isinstance(bad, FailedFrame)
    assert "c.png" in bad.message and "\n" not in bad.message
    assert np.array_equal(frames[0].rgb, numbered(2))


def test_a_picture_with_too_many_pixels_fails_alone(folder):
    Image.fromarray(numbered(0, height=100, width=100)).save(folder / "b2.png")
    with open_source(str(folder), max_pixels=5000) as source:
        frames = list(source)
    assert [isinstance(frame, FailedFrame) for frame in frames] == [False, False, True, True, False, False]
    assert "--max-pixels 10000" in frames[2].message


def test_every_and_max_frames_choose_images(folder):
    with open_source(str(folder), every=2, max_frames=2) as source:
        assert source.count == 2
        assert [frame.index for frame in source] == [0, 2]


def test_a_glob(folder):
    with open_source(str(folder / "[ab].*")) as source:
        assert names(list(source)) == ["a.png", "b.JPG"]
    with open_source(str(folder.parent / "**" / "*.bmp")) as source:
        assert names(list(source)) == ["d.bmp"]
    with pytest.raises(SourceError, match="it matches nothing"):
        open_source(str(folder / "*.gif"))
    with pytest.raises(SourceError, match="none of the 1 files it matches is an image"):
        open_source(str(folder / "*.txt"))


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = tmp_path / "frame[1].png"
    Image.fromarray(numbered(3)).save(path)
    assert open_source(str(path)).count == 1


def test_an_empty_folder_and_a_missing_file(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(SourceError, match="no image in this folder"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match=r"absent\.mp4: no such file"):
        open_source(str(tmp_path / "absent.mp4"))


def test_the_folders_below_in_a_stable_order_and_each_once(folder):
    below = folder / "z" / "y"
    below.mkdir(parents=True)
    Image.fromarray(numbered(5)).save(below / "e.png")
    Image.fromarray(numbered(6)).save(folder / "z" / "f.png")
    (folder / ".hidden").mkdir()
    Image.fromarray(numbered(7)).save(folder / ".hidden" / "g.png")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(numbered(8)).save(elsewhere / "h.png")
    (elsewhere / "back").symlink_to(folder.parent)
    flat = open_source(str(folder)).count
    (folder / "link").symlink_to(elsewhere)
    (below / "loop").symlink_to(folder)
    (folder / "z" / "again").symlink_to(below)
    with open_source(str(folder), recursive=True) as source:
        assert [str(path.relative_to(folder)) for path in source.paths][flat:] == ["link/h.png", "z/f.png", "z/y/e.png"]
    with open_source(str(folder)) as source:
        assert source.count == flat


def test_an_empty_folder_says_where_images_were_seen(folder, tmp_path):
    outer = tmp_path / "outer"
    (folder / "sub").mkdir()
    Image.fromarray(numbered(5)).save(folder / "sub" / "f.png")
    outer.mkdir()
    folder.rename(outer / "photos")
    with pytest.raises(SourceError, match=r"5 images in photos/, 1 image in photos/sub/: add --recursive"):
        open_source(str(outer))
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "drive.MP4").write_bytes(b"")
    with pytest.raises(SourceError, match=r"a video is given by its own name, as .*clips/drive\.MP4"):
        open_source(str(clips))
    with pytest.raises(SourceError, match="no image in this folder or below it; "):
        open_source(str(clips), recursive=True)


@pytest.mark.parametrize("number", ["1" + "0" * 30, "9" * 200])
def test_a_number_that_no_camera_has(number):
    with pytest.raises(SourceError, match="no camera has such a number"):
        open_source(number)


def test_a_folder_that_cannot_be_read_below_the_one_given(tmp_path, monkeypatch):
    def locked(self):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", locked)
    (tmp_path / "locked").mkdir()
    with pytest.raises(SourceError, match="no image in this folder"):
        open_source(str(tmp_path))


def test_images_have_no_time(folder):
    with pytest.raises(UsageError, match="--start"):
        open_source(str(folder), start=1)
    with pytest.raises(UsageError, match="--start"):
        open_source(str(folder / "a.png"), end=1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_must_be_numbers(folder, value):
    with pytest.raises(UsageError, match="seconds"):
        open_source(str(folder), start=value)


def test_decimal_times_mean_what_was_typed(tmp_path):
    """0.1 as a binary fraction is after the frame at one tenth of a second."""
    clip = make_clip(tmp_path / "clip.mp4", count=10, rate=Fraction(10))
    with open_source(str(clip), start=0.1, end=0.3) as source:
        assert [frame.index for frame in source] == [1, 2]


@pytest.mark.parametrize("with_pyav", [True, False])
def test_a_text_file_called_mp4(tmp_path, monkeypatch, with_pyav, capfd):
    if not with_pyav:
        monkeypatch.setattr(packages, "pyav", lambda: None)
    for content in ("just text\n" * 50, ""):
        path = tmp_path / "text.mp4"
        path.write_text(content)
        with pytest.raises(SourceError, match=r"text\.mp4: not a video that can be read"):
            open_source(str(path))
    assert capfd.readouterr() == ("", "")


def test_a_camera_that_is_not_there(capfd):
    began = time.monotonic()
    with pytest.raises(SourceError, match="camera 97"):
        open_source("97")
    assert time.monotonic() - began < 12
    assert capfd.readouterr().err == ""


def test_a_schema_that_is_none():
    with pytest.raises(SourceError, match="not from ftp://"):
        open_source("ftp://example.org/a.mp4")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="no address that can be read"):
        open_source("rtsp://[::1/live")


@pytest.mark.parametrize("with_pyav", [True, False])
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_refused_stream(monkeypatch, with_pyav, scheme):
    if not with_pyav:
        monkeypatch.setattr(packages, "pyav", lambda: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}/live"
    began = time.monotonic()
    with pytest.raises(SourceError, match="this stream does not open"):
        open_source(address)
    assert time.monotonic() - began < 5


def test_a_stream_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(containers, "OPEN_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(SourceError, match="this stream does not open"):
            open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/live")
        assert time.monotonic() - began < 5


def test_without_pillow_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(PackageMissing, match="pip install"):
        open_source(str(path))
