from __future__ import annotations

import pytest
import torch

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.checkpoints.checkpoint import checkpoint_from_path
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.errors import UsageError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.registry import model_from_spec
from dovit_deploy.families.stages import DenseNetwork
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.initialise import initialise, trainable_model
from dovit_deploy.train.masked import masked_forward
from dovit_deploy.train.result import ThresholdPoint, chosen_threshold, save_result, threshold_curve
from tests.tiny import tiny_model, tiny_pixels, tiny_spec
from tests.train.tiny_folder import COLOURS, write_folder

SPEC = tiny_spec(head="pup", stem="conv", gates=(1, 2), size=(40, 56), classes=4)


def point(threshold, drop, saved):
    return ThresholdPoint(
        threshold=threshold,
        miou=50 - drop,
        pixel_accuracy=80,
        drop=drop,
        flops_saved=saved,
        layers_saved=saved,
        kept=(),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "set", images=3, splits=("train", "val"))


def test_the_threshold_that_saves_most_within_the_drop_is_chosen():
    points = [point(None, 0, 0), point(0.7, 2, 0.6), point(0.8, 0.5, 0.5), point(0.9, 0.9, 0.4), point(0.95, 0, 0.2)]
    assert chosen_threshold(points, 0.8) == 0.8
    assert chosen_threshold([point(0.0, 0, 0.7), *points], 0.8) == 0.8
    assert chosen_threshold(points, 3) == 0.7
    assert chosen_threshold(points, -1) == 1


def test_the_curve_starts_dense_and_costs_what_ran(root):
    model = tiny_model(SPEC)
    data = dataset_from_path(root, "val")
    points = threshold_curve(model, data, scaling=Scaling(), thresholds=(0.0, 1.0)).points
    dense, all_stop, none_stop = points
    assert (dense.threshold, dense.drop, dense.flops_saved) == (None, 0, 0)
    assert all_stop.kept == (SPEC.tokens, SPEC.extra_tokens, SPEC.extra_tokens)
    cost = cost_model(SPEC)
    expected = 1 - cost.actual([SPEC.tokens, SPEC.extra_tokens, SPEC.extra_tokens]).total / cost.dense().total
    assert all_stop.flops_saved == pytest.approx(expected)
    assert none_stop.miou == pytest.approx(dense.miou)
    assert none_stop.flops_saved < 0
    assert none_stop.layers_saved == 0


def test_the_saved_checkpoint_is_the_network(tmp_path, root):
    model = trainable_model(SPEC)
    initialise(model, 3)
    with torch.no_grad():
        masked_forward(model, tiny_pixels(SPEC.size, 1, images=4))
    model.eval().to(memory_format=torch.channels_last)
    listed = dataset_from_path(root, "train").classes
    classes = tuple(ClassEntry(name=name, color=c) for name, c in zip(listed.names, listed.palette, strict=True))
    settings = {"threshold": 0.85, "scaling": Scaling(mean=(1, 2, 3)), "license_note": "for tests"}
    save_result(tmp_path / "made", model, classes, documents={"train.json": "{}"}, **settings)
    read = checkpoint_from_path(tmp_path / "made")
    assert read.thresholds == (0.85, 0.85)
    assert [entry.color for entry in read.classes] == COLOURS
    assert read.license == "for tests"
    assert read.preprocessing.mean == (1, 2, 3)
    assert (tmp_path / "made" / "train.json").read_text() == "{}"
    assert read.preprocessing.logits_cover == "padded"
    pixels = tiny_pixels(SPEC.size, 2)
    with torch.inference_mode():
        expected = masked_forward(model, pixels).logits
        logits = DenseNetwork(model_from_spec(read.spec, read.state))(pixels)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="exists"):
        save_result(tmp_path / "made", model, classes, documents={}, **settings)
