"""Validation during training: counts by hand, the grid over the padded input, and the mode restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovit_deploy.datasets.dataset import IGNORE, DatasetPart
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.train.batches import normalised
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.masked import masked_forward, uniform_passing
from dovit_deploy.train.validation import Validation, class_map_from_logits, validate
from tests.tiny import tiny_model, tiny_spec
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", stem="conv", gates=(1, 2), size=(40, 56), classes=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_folder(tmp_path_factory.mktemp("data") / "set", images=3), "train")


def test_iou_by_hand():
    result = Validation(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), np.zeros((1, 1), np.int64))
    np.testing.assert_allclose(result.counts.iou, [100 * 6 / 9, 100 * 3 / 6, np.nan])
    assert result.miou == pytest.approx((100 * 6 / 9 + 50) / 2)
    assert result.pixel_accuracy == pytest.approx(75)


def test_the_grid_covers_the_padded_input():
    """A 3x4 grid of 16-pixel cells over 48x64, cut to 40x56: cell borders stay at multiples of 16."""
    logits = torch.full((1, 12, 3, 4), -9.0)
    for cell in range(12):
        logits[0, cell, cell // 4, cell % 4] = 9.0
    classes = class_map_from_logits(logits, (40, 56), 16, (40, 56))
    rows, columns = torch.arange(40)[:, None] // 16, torch.arange(56)[None] // 16
    assert torch.equal(classes, (rows * 4 + columns).to(torch.uint8))


def test_an_image_of_another_size_gets_a_map_of_its_size():
    assert class_map_from_logits(torch.randn(1, 4, 6, 8), (40, 56), 16, (80, 100)).shape == (80, 100)


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_the_confusion_counts_every_known_pixel_of_every_image(data, threshold):
    model = tiny_model(SPEC)
    passing = None if threshold is None else uniform_passing(SPEC, threshold)
    result = validate(model, data, passing=passing, scaling=Scaling())
    known = sum(int((data.label(number) != IGNORE).sum()) for number in range(len(data)))
    assert result.confusion.sum() == known
    assert result.kept.shape == (3, 3)
    assert (result.kept[:, 0] == SPEC.tokens).all()
    assert (result.kept.min() < SPEC.tokens) == (threshold is not None)


def test_the_models_mode_is_restored(data):
    for training in (True, False):
        model = tiny_model(SPEC).train(training)
        validate(model, data, passing=None, scaling=Scaling())
        assert model.training == training


def test_it_is_the_masked_forward_on_normalised_pixels(data):
    model = tiny_model(SPEC)
    sample = data.sample(0)
    with torch.no_grad():
        logits = masked_forward(model, torch.from_numpy(normalised(sample.rgb, Scaling()))[None]).logits
    predicted = class_map_from_logits(logits, SPEC.size, SPEC.patch, SPEC.size).numpy()
    confusion = validate(model, DatasetPart(data, [0]), passing=None, scaling=Scaling()).confusion
    for true in range(4):
        for called in range(4):
            assert confusion[true, called] == ((sample.label == true) & (predicted == called)).sum()
