"""Top-k accuracy against torchmetrics, and the interval of a drop against a bootstrap that draws pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from dovit_deploy.measure.accuracy import accuracy, accuracy_drop_interval, top_hits
from dovit_deploy.runtime.class_scores import most_probable


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([5, 7, 30]), st.sampled_from([1, 5]))
def test_top_k_is_torchmetrics(seed, pictures, classes, top):
    draw = np.random.default_rng(seed)
    scores, labels = draw.normal(size=(pictures, classes)), draw.integers(0, classes, pictures)
    ranked = [most_probable(row, top=5) for row in scores]
    ours = accuracy(top_hits(ranked, labels, top=top))
    theirs = multiclass_accuracy(
        torch.from_numpy(scores), torch.from_numpy(labels), num_classes=classes, top_k=top, average="micro"
    )
    assert ours == pytest.approx(100 * float(theirs), abs=1e-4)


def drawn_interval(before, after, *, resamples, seed):
    """The same by drawing pictures one by one."""
    draw = np.random.default_rng(seed).integers(0, len(before), (resamples, len(before)))
    drops = 100 * (before[draw].mean(axis=1) - after[draw].mean(axis=1))
    return np.quantile(drops, [0.025, 0.975])


@pytest.mark.parametrize(("lost", "won", "pictures"), [(30, 10, 400), (3, 0, 60), (0, 0, 50), (5, 25, 300)])
def test_the_interval_is_that_of_drawing_pictures(lost, won, pictures):
    before, after = np.zeros(pictures, bool), np.zeros(pictures, bool)
    before[: lost + 20], after[lost : lost + 20] = True, True
    after[lost + 20 : lost + 20 + won] = True
    low, high = accuracy_drop_interval(before, after, resamples=20000)
    wanted = drawn_interval(before, after, resamples=20000, seed=1)
    # Within one picture: the drawn drops are multiples of it.
    assert (low, high) == pytest.approx(tuple(wanted), abs=100 / pictures + 1e-9)
    assert low <= accuracy(before) - accuracy(after) <= high


def test_it_is_paired():
    # Right on the same pictures: no drop, however it is drawn. On different ones: none on average, and unsure.
    same = np.arange(100) % 2 == 0
    assert accuracy_drop_interval(same, same) == (0, 0)
    low, high = accuracy_drop_interval(same, ~same)
    assert low < -10 and high > 10


def test_one_picture_has_no_interval_and_the_draw_is_the_same_again():
    assert accuracy_drop_interval(np.array([True]), np.array([False])) is None
    before, after = (np.random.default_rng(number).random(50) < 0.7 for number in range(2))
    assert accuracy_drop_interval(before, after) == accuracy_drop_interval(before, after)
