"""What is painted over an image and written as a file: overlay, labels, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_deploy.runtime.paint import paint_label, paint_overlay, save_mask
from dovit_deploy.runtime.results import ClassScore, Palette

PALETTE = Palette(("road", "sky", "car"), np.array([[200, 0, 0], [0, 100, 0], [0, 0, 240]], dtype=np.uint8))
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def halves():
    numbers = np.zeros((30, 40), dtype=np.uint8)
    numbers[:, 20:] = 2
    return numbers


def test_every_class_gets_its_colour():
    painted = paint_overlay(RGB, halves(), PALETTE, alpha=0.5)
    assert painted.shape == RGB.shape and painted.dtype == np.uint8
    expected = RGB * 0.5 + PALETTE.colors[halves()] * 0.5
    inside = np.abs(np.arange(40) - 20) > 2
    np.testing.assert_allclose(painted[:, inside], expected[:, inside], atol=0.51)


def test_a_bright_line_stands_where_classes_meet_and_only_there():
    painted = paint_overlay(np.zeros_like(RGB), halves(), PALETTE, alpha=0.5)
    lightness = painted.max(axis=2)
    on_line = np.flatnonzero(lightness[0] > 150)
    assert 1 <= len(on_line) <= 3 and set(on_line) <= {18, 19, 20, 21}
    assert (lightness == lightness[0]).all()


def test_alpha_runs_from_the_image_to_the_colours():
    np.testing.assert_array_equal(paint_overlay(RGB, halves(), PALETTE, alpha=0), RGB)
    flat = np.ones((30, 40), dtype=np.uint8)
    np.testing.assert_array_equal(paint_overlay(RGB, flat, PALETTE, alpha=1), np.full_like(RGB, [0, 100, 0]))


def test_the_image_itself_is_not_painted_on():
    before = RGB.copy()
    paint_overlay(RGB, halves(), PALETTE, alpha=0.5)
    np.testing.assert_array_equal(RGB, before)


def test_strided_images_and_single_pixels():
    view = RGB[::-1, ::-1]
    np.testing.assert_array_equal(
        paint_overlay(view, halves(), PALETTE, alpha=0.4), paint_overlay(view.copy(), halves(), PALETTE, alpha=0.4)
    )
    assert paint_overlay(RGB[:1, :1], halves()[:1, :1], PALETTE, alpha=0.5).shape == (1, 1, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"alpha 1.5 .*\[0, 1\]"):
        paint_overlay(RGB, halves(), PALETTE, alpha=1.5)
    with pytest.raises(UsageError, match=r"\(29, 40\).*\(30, 40\)"):
        paint_overlay(RGB, halves()[1:], PALETTE, alpha=0.5)


def test_a_mask_comes_back_with_its_numbers_and_colours(tmp_path):
    path = tmp_path / "mask.png"
    save_mask(path, halves(), PALETTE)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), halves())
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE.colors[halves()])
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]


def test_class_numbers_up_to_255_are_kept(tmp_path):
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colors = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    save_mask(tmp_path / "all.png", numbers, Palette(("x",) * 256, colors))
    with Image.open(tmp_path / "all.png") as image:
        np.testing.assert_array_equal(np.asarray(image), numbers)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[numbers])


def test_masks_go_into_png_files_in_folders_that_exist(tmp_path):
    with pytest.raises(UsageError, match=r"mask\.jpg.*\.png"):
        save_mask(tmp_path / "mask.jpg", halves(), PALETTE)
    with pytest.raises(UsageError, match="no folder"):
        save_mask(tmp_path / "absent" / "mask.png", halves(), PALETTE)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_older_file_and_leaves_no_half_one(tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    save_mask(path, halves(), PALETTE)
    before = path.read_bytes()

    def fails(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        save_mask(path, np.ones((30, 40), dtype=np.uint8), PALETTE)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# The label on the image: its position, what fits, what is left alone.

GREY = np.full((240, 320, 3), 180, dtype=np.uint8)


def scores(*probabilities, name="tench"):
    return tuple(ClassScore(number, f"{name} {number}", value) for number, value in enumerate(probabilities))


def changed(rgb, classes):
    return (paint_label(rgb, classes) != rgb).any(axis=2)


def test_the_label_stands_in_the_lower_left_corner():
    where = np.argwhere(changed(GREY, scores(0.9)))
    assert where[:, 0].min() > 180 and where[:, 1].max() < 200
    painted = paint_label(GREY, scores(0.9))
    assert painted.max() == 255 and painted is not GREY and (GREY == 180).all()


def test_another_probability_or_name_gives_another_image():
    first = paint_label(GREY, scores(0.9))
    assert (paint_label(GREY, scores(0.8)) != first).any()
    assert (paint_label(GREY, scores(0.9, name="bench")) != first).any()


def test_up_to_three_classes_that_are_worth_it():
    heights = [
        int(changed(GREY, scores(*values)).any(axis=1).sum())
        for values in ((0.9,), (0.9, 0.001), (0.6, 0.3), (0.5, 0.3, 0.1), (0.5, 0.2, 0.1, 0.1))
    ]
    assert heights[0] == heights[1] < heights[2] < heights[3] == heights[4]
    # The first is written however improbable it is.
    assert changed(GREY, scores(0.001)).any()


def test_a_long_name_stays_inside_and_keeps_its_probability():
    long = scores(0.9, name="a" * 200)
    where = np.argwhere(changed(GREY, long))
    assert where[:, 1].max() < 320 - 3
    assert (paint_label(GREY, long) != paint_label(GREY, scores(0.8, name="a" * 200))).any()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (95, 400), (400, 159)])
def test_what_is_too_small_to_read_stays_as_it_is(shape):
    small = np.full((*shape, 3), 7, dtype=np.uint8)
    assert not changed(small, scores(0.9)).any()


def test_a_class_without_a_name_is_called_by_its_number():
    np.testing.assert_array_equal(
        paint_label(GREY, (ClassScore(7, "", 0.5),)), paint_label(GREY, (ClassScore(7, "class 7", 0.5),))
    )
