from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from dovit_deploy.runtime.orientation import orientation_from_matrix, upright, upright_size

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("orientation", range(9))
def test_every_turn_is_that_of_pillow(orientation):
    image = Image.fromarray(PICTURE)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    turned = upright(PICTURE, orientation)
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
