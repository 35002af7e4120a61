"""The plot of a run: its answers are those of the network, and it is drawn of long runs, short ones and none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dovit_deploy.bundle.manifest import ClassEntry
from dovit_deploy.datasets.open import dataset_from_path
from dovit_deploy.measure.metrics import confusion_matrix
from dovit_deploy.train.config import Scaling
from dovit_deploy.train.masked import uniform_passing
from dovit_deploy.train.plot import SAMPLES, SMOOTH, _smoothed, sample_answers, write_plot
from dovit_deploy.train.result import ThresholdPoint
from dovit_deploy.train.validation import validate
from tests.tiny import tiny_model, tiny_spec
from tests.train.tiny_folder import write_folder

SPEC = tiny_spec(head="pup", stem="conv", gates=(1, 2), size=(40, 56), classes=4)
CLASSES = [ClassEntry(name=f"class {number}", color=(60 * number, 0, 255 - number)) for number in range(4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_from_path(write_folder(tmp_path_factory.mktemp("data") / "set", images=SAMPLES), "train")


def test_answers_are_those_that_are_validated(data):
    model = tiny_model(SPEC)
    model.train()
    answers = sample_answers(model, data, threshold=0.6, scaling=Scaling())
    assert model.training and len(answers) == SAMPLES
    for passing, name in ((None, "dense"), (uniform_passing(SPEC, 0.6), "stopped")):
        wanted = validate(model, data, passing=passing, scaling=Scaling()).confusion
        found = sum(confusion_matrix(one.label, getattr(one, name), classes=4) for one in answers)
        np.testing.assert_array_equal(found, wanted)
    assert any((one.dense != one.stopped).any() for one in answers)


def test_curves_are_means_of_the_steps_before():
    rows = [{"step": number, "loss": float(number % 2)} for number in range(10 * SMOOTH)]
    steps, values = _smoothed(rows, "loss")
    assert steps[0] == SMOOTH - 1 and len(steps) == len(values) and np.allclose(values, 0.5)
    assert _smoothed(rows[:3], "loss")[0] == [0, 1, 2] and _smoothed([], "loss")[0] == []


@pytest.mark.parametrize("steps", [0, 3, 200])
def test_it_is_drawn_of_runs_of_any_length(data, tmp_path, steps):
    rows = [{"step": n, "loss": 1.0, "threshold": 0.9, "kept0": 0.5, "kept1": 0.2} for n in range(steps)]
    rows += [{"step": steps, "miou": 40.0}] if steps else []
    point = {"miou": 50.0, "pixel_accuracy": 60.0, "drop": 0.0, "layers_saved": 0.0, "kept": (7.0,)}
    curve = [ThresholdPoint(threshold=t, flops_saved=s, **point) for t, s in ((None, 0.0), (0.9, 0.4))][: steps + 1]
    samples = sample_answers(tiny_model(SPEC), data, threshold=0.6, scaling=Scaling()) if steps else ()
    write_plot(tmp_path / "training.png", rows, curve, samples, CLASSES)
    drawn = cv2.imread(str(tmp_path / "training.png"))
    assert drawn is not None and drawn.shape[0] == pytest.approx(110 * (4.2 + 2.7 * len(samples)), abs=2)
