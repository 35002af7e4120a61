"""Metrics against counting by hand and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.measure.metrics import ClassCounts, accuracy, boundary_counts, confusion_matrix, top_hits
from dovit_deploy.runtime.results import most_probable


def maps(seed: int, *, classes: int = 4, size: tuple[int, int] = (20, 30), void: float = 0.1):
    draw = np.random.default_rng(seed)
    label = draw.integers(0, classes, size).astype(np.uint8)
    predicted = np.where(draw.random(size) < 0.6, label, draw.integers(0, classes, size)).astype(np.uint8)
    label[draw.random(size) < void] = IGNORE
    return label, predicted


def test_iou_and_accuracy_by_hand():
    label = np.array([[0, 0, 0, 1, 1, IGNORE]], np.uint8)
    predicted = np.array([[0, 0, 1, 1, 0, 2]], np.uint8)
    matrix = confusion_matrix(label, predicted, classes=4)
    np.testing.assert_array_equal(matrix[:2, :2], [[2, 1], [1, 1]])
    counts = ClassCounts.from_confusion(matrix)
    np.testing.assert_allclose(counts.iou, [50, 100 / 3, np.nan, np.nan])
    assert counts.miou == pytest.approx((50 + 100 / 3) / 2)
    assert counts.pixel_accuracy == pytest.approx(60)


def test_a_class_that_is_only_predicted_counts_as_zero():
    counts = ClassCounts.of(np.zeros((1, 4), np.uint8), np.array([[0, 0, 0, 2]], np.uint8), classes=3)
    np.testing.assert_allclose(counts.iou, [75, np.nan, 0])
    assert counts.miou == pytest.approx(37.5)


def test_void_everywhere_is_no_number():
    label = np.full((3, 3), IGNORE, np.uint8)
    counts = ClassCounts.of(label, np.zeros((3, 3), np.uint8), classes=3)
    assert np.isnan(counts.miou)
    assert np.isnan(counts.pixel_accuracy)


def test_one_matrix_over_the_set_is_not_the_mean_over_images():
    images = [maps(seed, size=size) for seed, size in ((0, (20, 30)), (1, (5, 6)))]
    parts = [confusion_matrix(*image, classes=4) for image in images]
    joined = confusion_matrix(
        *(np.concatenate([part.ravel() for part in pair]) for pair in zip(*images, strict=True)), classes=4
    )
    np.testing.assert_array_equal(sum(parts), joined)
    total = ClassCounts.from_confusion(joined)
    each = [ClassCounts.from_confusion(part) for part in parts]
    counts = ClassCounts.stacked(each)
    assert counts.miou == pytest.approx(total.miou)
    assert counts.pixel_accuracy == pytest.approx(total.pixel_accuracy)
    assert counts.miou != pytest.approx(np.mean([part.miou for part in each]), abs=0.1)


def test_weights_count_an_image_again():
    parts = [ClassCounts.of(*maps(seed), classes=4) for seed in range(3)]
    counts = ClassCounts.stacked(parts)
    twice = ClassCounts.stacked([parts[0], parts[0], parts[2]]).miou
    np.testing.assert_allclose(counts.weighted(np.array([[2, 0, 1], [0, 1, 0]])).mious, [twice, parts[1].miou])


@settings(derandomize=True, max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 7), void=st.sampled_from([0.0, 0.3]))
def test_agrees_with_torchmetrics(seed, classes, void):
    import torch
    from torchmetrics import classification

    images = [maps(seed + number, classes=classes, void=void) for number in range(3)]
    # A class that occurs nowhere: both leave it out of the mean.
    options = {"num_classes": classes + 1, "ignore_index": IGNORE}
    per_class = classification.MulticlassJaccardIndex(average="none", **options)
    mean = classification.MulticlassJaccardIndex(average="macro", **options)
    right = classification.MulticlassAccuracy(average="micro", **options)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for label, predicted in images:
        matrix += confusion_matrix(label, predicted, classes=classes + 1)
        for metric in (per_class, mean, right):
            metric.update(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(label.astype(np.int64)))
    counts = ClassCounts.from_confusion(matrix)
    np.testing.assert_allclose(np.nan_to_num(counts.iou), 100 * per_class.compute().numpy(), rtol=1e-5)
    assert counts.miou == pytest.approx(100 * float(mean.compute()), rel=1e-5)
    assert counts.pixel_accuracy == pytest.approx(100 * float(right.compute()), rel=1e-5)


def within(mask: np.ndarray, band: int) -> np.ndarray:
    """Pixels of `mask` with anything else, or the frame, at most `band` pixels away (chessboard), one by one."""
    found = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        top, left = row - band, column - band
        square = mask[max(0, top) : row + band + 1, max(0, left) : column + band + 1]
        found[row, column] = square.size < (2 * band + 1) ** 2 or not square.all()
    return found


def test_the_boundary_is_a_band_of_three_pixels_inside_each_class():
    label = np.zeros((24, 32), np.uint8)
    label[5:18, 8:25] = 1
    label[0:2] = IGNORE
    predicted = np.roll(label, 1, axis=1)
    predicted[label == IGNORE] = 1
    counts = boundary_counts(label, predicted, classes=3)
    called = np.where(label == IGNORE, IGNORE, predicted)
    for number in range(2):
        true, guess = within(label == number, 3), within(called == number, 3)
        assert counts.hit[number] == (true & guess).sum()
        assert counts.true[number] == true.sum()
        assert counts.predicted[number] == guess.sum()
    assert counts.true[2] == counts.predicted[2] == 0
    # The middle of the rectangle, 7 x 11 pixels, lies further inside.
    assert counts.true[1] == 13 * 17 - 7 * 11


def test_a_shifted_thing_loses_more_at_the_boundary():
    label = np.zeros((60, 80), np.uint8)
    label[20:50, 20:60] = 1
    predicted = np.roll(label, 2, axis=0)
    whole = ClassCounts.of(label, predicted, classes=2).iou
    boundary = boundary_counts(label, predicted, classes=2).iou
    assert (boundary < whole - 10).all()
    assert boundary_counts(label, label, classes=2).miou == 100


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([5, 7, 30]), st.sampled_from([1, 5]))
def test_top_k_is_torchmetrics(seed, images, classes, top):
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy

    draw = np.random.default_rng(seed)
    scores, labels = draw.normal(size=(images, classes)), draw.integers(0, classes, images)
    ranked = [most_probable(row, top=5) for row in scores]
    ours = accuracy(top_hits(ranked, labels, top=top))
    theirs = multiclass_accuracy(
        torch.from_numpy(scores), torch.from_numpy(labels), num_classes=classes, top_k=top, average="micro"
    )
    assert ours == pytest.approx(100 * float(theirs), abs=1e-4)
