from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.datasets.dataset import IGNORE, Sample
from dovit_deploy.train.batches import normalised, random_view
from dovit_deploy.train.config import Augmentation, Scaling

MEAN, STD = np.array(Scaling().mean), np.array(Scaling().std)
PLAIN = Augmentation(
    scale=(1, 1), aspect=(1, 1), brightness=(1, 1), channel_gain=(1, 1), gamma=(1, 1), saturation=(1, 1)
)


def gradient(height=64, width=96):
    """Every pixel's colour tells its row and column; the label is a coarse chessboard of the same."""
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows, columns, np.full_like(rows, 90)], -1).astype(np.uint8)
    return Sample("gradient", rgb, ((rows // 8 + columns // 8) % 3).astype(np.uint8))


def view(seed, *, ranges=PLAIN, size=(64, 96), crop=(32, 48), sample=None):
    return random_view(
        sample or gradient(), size=size, crop=crop, ranges=ranges, scaling=Scaling(), rng=np.random.default_rng(seed)
    )


def colours(pixels):
    return pixels.transpose(1, 2, 0) * STD + MEAN


def test_normalised_is_zero_at_the_mean_colour():
    grey = np.tile(np.round(MEAN).astype(np.uint8), (4, 5, 1))
    assert normalised(grey, Scaling()).shape == (3, 4, 5)
    assert np.abs(normalised(grey, Scaling())).max() < 0.01


@pytest.mark.parametrize("seed", range(8))
def test_label_and_place_follow_the_pixels(seed):
    """Unscaled, the colour says which pixel each pixel came from, and so what its label and its position must be."""
    result, sample = view(seed), gradient()
    rows, columns = (colours(result.pixels)[..., axis] for axis in (0, 1))
    flipped = columns[0, 0] > columns[0, -1]
    settled = (np.abs(rows - np.rint(rows)) < 0.3) & (np.abs(columns - np.rint(columns)) < 0.3)
    expected = sample.label[np.rint(rows).astype(int), np.rint(columns).astype(int)]
    wrong = (expected != result.label) & settled
    assert settled.any()
    assert not wrong.any()
    left = 95 - columns[0, 0] if flipped else columns[0, 0]
    np.testing.assert_allclose(result.position, [rows[0, 0] / 32, left / 48], atol=0.03)


def test_both_flips_occur():
    assert {bool(np.diff(view(seed).pixels[1, 0, :2])[0] > 0) for seed in range(12)} == {True, False}


def test_outside_the_image_lies_the_mean_and_no_class():
    small = PLAIN.model_copy(update={"scale": (0.5, 0.5)})
    result = view(3, ranges=small, crop=(64, 96))
    outside = result.label == IGNORE
    assert 0.7 < outside.mean() < 0.8
    assert np.abs(result.pixels[:, outside]).max() == 0
    assert np.abs(result.pixels[2, ~outside] - (90 - MEAN[2]) / STD[2]).max() < 0.1


def test_images_of_another_size_are_brought_to_the_input_size():
    result = view(1, size=(32, 48), crop=(32, 48))
    assert (result.label != IGNORE).all()
    assert np.ptp(colours(result.pixels)[..., 0]) > 55


def test_the_colours_change_within_their_ranges_and_labels_do_not():
    changed = [view(seed, ranges=Augmentation(scale=(1, 1), aspect=(1, 1)), crop=(64, 96)) for seed in range(6)]
    plain = [view(seed, crop=(64, 96)) for seed in range(6)]
    assert len({float(one.pixels.mean()) for one in changed}) == 6
    assert all(
        sorted(np.unique(one.label)) == sorted(np.unique(two.label)) for one, two in zip(changed, plain, strict=True)
    )


def test_a_view_is_decided_by_its_generator():
    one, two, other = view(4, ranges=Augmentation()), view(4, ranges=Augmentation()), view(5, ranges=Augmentation())
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.label, two.label)
    assert not np.array_equal(one.pixels, other.pixels)
