"""Rendered scenes as a data set; errors of `dovit_scenes` become this package's, with their exit codes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dovit_deploy.datasets.scenes import RenderedScenes, scene_errors, street_images
from dovit_deploy.errors import EnvironmentProblem, UsageError
from dovit_scenes import CLASS_NAMES, street_frames


def test_an_argument_out_of_range_is_a_usage_error():
    with pytest.raises(UsageError, match="density 2") as caught, scene_errors():
        street_frames(1, seed=0, density=2.0)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="8x8"):
        RenderedScenes("train", size=(8, 8)).sample(0)


def test_without_opencv_the_environment_is_at_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for ask in (lambda: street_images(1, seed=0), lambda: RenderedScenes("train", size=(48, 64)).label(0)):
        with pytest.raises(EnvironmentProblem, match="pip install") as caught:
            ask()
        assert caught.value.exit_code == 5


def test_rendered_scenes_are_as_full_as_asked_for():
    bare, full = (RenderedScenes("train", size=(48, 64), count=4, fullness=(value, value)) for value in (0.0, 1.0))
    mixed = RenderedScenes("train", size=(48, 64), count=4, fullness=(0.0, 1.0))
    things = {CLASS_NAMES.index(name) for name in ("pole", "sign", "fence", "car", "pedestrian", "bicyclist")}
    assert not any(set(np.unique(bare.label(index))) & things for index in range(4))
    assert any(set(np.unique(full.label(index))) & things for index in range(4))
    different = [
        (np.array_equal(mixed.label(index), bare.label(index)), np.array_equal(mixed.label(index), full.label(index)))
        for index in range(4)
    ]
    assert (False, False) in different
    assert np.array_equal(full.label(1), RenderedScenes("train", size=(48, 64)).label(1))
