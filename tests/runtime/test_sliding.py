from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.runtime.sliding import averaged_bands
from dovit_deploy.runtime.transforms import windows


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.integers(0, 40), st.data())
@settings(max_examples=60, derandomize=True, deadline=None)
def test_bands_are_the_mean_of_all_windows(high, wide, extra_height, extra_width, data):
    stride = data.draw(st.tuples(st.integers(1, high), st.integers(1, wide)))
    height, width = high + extra_height, wide + extra_width
    corners = windows(height, width, (high, wide), stride)
    random = np.random.default_rng(height + width)
    placed = [(*corner, random.normal(size=(2, high, wide)).astype(np.float32)) for corner in corners]
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for top, left, logits in placed:
        total[:, top : top + high, left : left + wide] += logits
        count[top : top + high, left : left + wide] += 1
    bands = list(averaged_bands(iter(placed), width))
    ends = [top + band.shape[1] for top, band in bands]
    assert [top for top, _ in bands] == [0, *ends[:-1]] and ends[-1] == height
    np.testing.assert_allclose(np.concatenate([band for _, band in bands], axis=1), total / count, atol=1e-5)


def test_a_band_comes_as_soon_as_no_window_reaches_it():
    taken = []

    def placed():
        for top in (0, 4, 8):
            taken.append(top)
            yield top, 0, np.ones((1, 6, 3), dtype=np.float32)

    bands = averaged_bands(placed(), 3)
    assert next(bands)[1].shape == (1, 4, 3)
    assert taken == [0, 4]
