from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import SourceError
from dovit_deploy.measure.frames import (
    DENSITIES,
    MOST_FRAMES,
    frames_from_source,
    rendered_frames,
)
from dovit_deploy.runtime.transforms import to_input
from dovit_deploy.runtime.video_writer import open_video_writer
from tests.fakes import fake_manifest

LIMIT = 10**6


def save(path, level, size=(40, 50)):
    Image.fromarray(np.full((*size, 3), level, dtype=np.uint8)).save(path)


def test_rendered_streets_come_in_every_density_and_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr("dovit_deploy.measure.frames.SCENES_PER_DENSITY", 1)
    frames, again = rendered_frames(fake_manifest()), rendered_frames(fake_manifest())
    assert len(frames.pixels) == len(set(frames.labels)) == len(DENSITIES)
    assert all(pixels.shape == (1, 3, 64, 96) and pixels.dtype == np.float32 for pixels in frames.pixels)
    # The same street at another density is another picture.
    assert not np.array_equal(frames.pixels[0], frames.pixels[1])
    assert all(map(np.array_equal, frames.pixels, again.pixels))


def test_pictures_are_resized_even_where_windows_would_slide(tmp_path):
    save(tmp_path / "a.png", 90, size=(300, 400))
    manifest = fake_manifest(stride=(32, 48))
    frames = frames_from_source(str(tmp_path / "a.png"), manifest, max_pixels=LIMIT)
    plain = to_input(np.full((300, 400, 3), 90, dtype=np.uint8), fake_manifest().preprocessing, (64, 96))
    np.testing.assert_array_equal(frames.pixels[0], plain)


def test_a_bad_picture_is_told_and_the_others_are_taken(tmp_path):
    save(tmp_path / "a.png", 10)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    save(tmp_path / "c.png", 200)
    frames = frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)
    assert frames.labels == ("a.png 0", "c.png 2")
    assert len(frames.failures) == 1 and "b.png" in frames.failures[0]


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not a picture")
    with pytest.raises(SourceError, match=r"a\.png"):
        frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)


@pytest.mark.parametrize(("total", "taken"), [(MOST_FRAMES, 16), (MOST_FRAMES + 1, 9), (5 * MOST_FRAMES, 16)])
def test_many_frames_are_thinned_evenly(tmp_path, total, taken):
    for number in range(total):
        save(tmp_path / f"{number:03}.png", number, size=(4, 4))
    frames = frames_from_source(str(tmp_path), fake_manifest(), max_pixels=LIMIT)
    assert len(frames.pixels) == taken
    assert frames.taken_from == (None if total == taken else total)
    steps = np.diff([int(label.split()[1]) for label in frames.labels])
    assert set(steps) == {-(-total // MOST_FRAMES)}


def test_a_video_is_a_source(tmp_path):
    path = tmp_path / "clip.mp4"
    with open_video_writer(path, size=(48, 64), rate=Fraction(25)) as writer:
        for number in range(20):
            writer.write(np.full((48, 64, 3), 10 * number, dtype=np.uint8), Fraction(number, 25))
    frames = frames_from_source(str(path), fake_manifest(), max_pixels=LIMIT)
    assert len(frames.pixels) == 10 and frames.taken_from == 20
    assert frames.labels[1] == "clip.mp4 2"
