from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dovit_deploy.errors import PackageMissing
from dovit_deploy.runtime.exit_map import paint_tokens
from dovit_deploy.runtime.overlay import paint_overlay
from dovit_deploy.runtime.predictor import Predictor
from dovit_deploy.runtime.results import FrameTiming, FrameTokens, Palette
from dovit_deploy.runtime.segmentation import SegmentationResult
from dovit_deploy.runtime.selection_map import paint_selections
from tests.fakes import FakeSession


def predicted():
    rgb = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    return Predictor(FakeSession()).predict(rgb)


def known():
    numbers = np.zeros((6, 8), dtype=np.uint8)
    numbers[1:3, 4:7] = 2
    palette = Palette(("road", "sky", "car"), np.zeros((3, 3), dtype=np.uint8))
    rgb = np.zeros((6, 8, 3), dtype=np.uint8)
    return SegmentationResult(rgb, numbers, FrameTokens((), (16, 16)), FrameTiming(0, 0, 0, 0), palette)


def test_plots_are_the_paintings_of_its_own_picture():
    result = predicted()
    expected = paint_overlay(result.rgb, result.class_map, result.palette, alpha=0.3)
    np.testing.assert_array_equal(result.plot(alpha=0.3), expected)
    np.testing.assert_array_equal(result.plot_tokens(), paint_tokens(result.rgb, result.tokens, result.gates))
    assert result.plot().shape == result.rgb.shape and (result.plot() != result.rgb).any()


def test_a_fixed_number_of_tokens_is_shown_by_its_selections():
    result = predicted()
    selected = dataclasses.replace(result, gates=())
    np.testing.assert_array_equal(selected.plot_tokens(), paint_selections(result.rgb, result.tokens))
    assert (selected.plot_tokens() != result.plot_tokens()).any()
    assert result.facts() == {}


def test_saved_masks_hold_class_numbers(tmp_path):
    result = predicted()
    result.save(str(tmp_path / "mask.png"))
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), result.class_map)


def test_supervision_gets_one_detection_per_class_that_occurs(monkeypatch):
    fake = ModuleType("supervision")
    fake.Detections = dict
    monkeypatch.setitem(sys.modules, "supervision", fake)
    found = known().to_supervision()
    assert found["class_id"].tolist() == [0, 2]
    assert found["data"]["class_name"].tolist() == ["road", "car"]
    assert found["xyxy"].tolist() == [[0, 0, 7, 5], [4, 1, 6, 2]]
    assert found["mask"].dtype == bool and found["mask"].shape == (2, 6, 8)
    np.testing.assert_array_equal(found["mask"][1], known().class_map == 2)


def test_without_supervision_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(PackageMissing, match="pip install supervision"):
        known().to_supervision()
