"""Colours that can be told apart: the distance, the generated ones, and those of our models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dovit_deploy.bundle.palette import MOST_COLORS, color_distances, generated_palette, oklab_from_rgb
from tests.paths import ROOT

OURS = sorted([*ROOT.glob("models/*/*/*.dovit/manifest.json"), *ROOT.glob("models/*/classes.json")])
"""What the bundles have, and what one that is to be made will get."""
TOLD_APART = 0.15
"""Distance from which two colours differ at a glance, also where half of the image shines through."""


def closest(colors):
    return float(color_distances(colors)[np.triu_indices(len(colors), k=1)].min())


def seen_without_green(colors):
    """Colours as an eye without the green receptor sees them (Machado and others, 2009), 0..255."""
    linear = (np.asarray(colors) / 255) ** 2.2
    seen = linear @ np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]).T
    return 255 * np.clip(seen, 0, 1) ** (1 / 2.2)


def test_known_colours_in_oklab() -> None:
    # The values that the author of Oklab publishes for white, red and blue.
    known = [[1.0, 0.0, 0.0], [0.628, 0.225, 0.126], [0.452, -0.032, -0.312]]
    np.testing.assert_allclose(oklab_from_rgb([[255, 255, 255], [255, 0, 0], [0, 0, 255]]), known, atol=2e-3)


def test_black_and_white_are_1_apart_and_equals_0() -> None:
    distances = color_distances([(0, 0, 0), (255, 255, 255), (0, 0, 0)])
    np.testing.assert_allclose(distances, [[0, 1, 0], [1, 0, 1], [0, 1, 0]], atol=1e-6)


@pytest.mark.parametrize(("count", "least"), [(2, 0.4), (5, 0.3), (8, 0.2), (12, 0.2), (19, TOLD_APART), (150, 0.05)])
def test_generated_colours_can_be_told_apart(count: int, least: float) -> None:
    assert closest(generated_palette(count)) > least


def test_generated_colours_are_stable_and_differ() -> None:
    assert generated_palette(150)[:19] == generated_palette(19)
    assert len(set(generated_palette(MOST_COLORS))) == MOST_COLORS
    assert len(generated_palette(1000)) == 1000 and generated_palette(0) == []
    assert all(0 <= value <= 255 for color in generated_palette(MOST_COLORS) for value in color)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.parent.name)
def test_our_models_classes_can_be_told_apart(path) -> None:
    classes = {entry["name"]: entry["color"] for entry in json.loads(path.read_text())["classes"]}
    assert closest(list(classes.values())) > TOLD_APART
    # The two that are beside each other in every street.
    assert closest([classes["road"], classes["car"]]) > 0.25
    assert closest(seen_without_green(list(classes.values()))) > 0.08
