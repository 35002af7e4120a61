"""The label on the picture: where it stands, what fits, what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.runtime.class_scores import ClassScore
from dovit_deploy.runtime.label_overlay import in_ascii, paint_label

GREY = np.full((240, 320, 3), 180, dtype=np.uint8)


def scores(*probabilities, name="tench"):
    return tuple(ClassScore(number, f"{name} {number}", value) for number, value in enumerate(probabilities))


def changed(rgb, classes):
    return (paint_label(rgb, classes) != rgb).any(axis=2)


def test_the_label_stands_in_the_lower_left_corner():
    where = np.argwhere(changed(GREY, scores(0.9)))
    assert where[:, 0].min() > 180 and where[:, 1].max() < 200
    painted = paint_label(GREY, scores(0.9))
    assert painted.max() == 255 and painted is not GREY and (GREY == 180).all()


def test_another_probability_or_name_gives_another_picture():
    first = paint_label(GREY, scores(0.9))
    assert (paint_label(GREY, scores(0.8)) != first).any()
    assert (paint_label(GREY, scores(0.9, name="bench")) != first).any()


def test_up_to_three_classes_that_are_worth_it():
    heights = [
        int(changed(GREY, scores(*values)).any(axis=1).sum())
        for values in ((0.9,), (0.9, 0.001), (0.6, 0.3), (0.5, 0.3, 0.1), (0.5, 0.2, 0.1, 0.1))
    ]
    assert heights[0] == heights[1] < heights[2] < heights[3] == heights[4]
    # The first is written however improbable it is.
    assert changed(GREY, scores(0.001)).any()


def test_a_long_name_stays_inside_and_keeps_its_probability():
    long = scores(0.9, name="a" * 200)
    where = np.argwhere(changed(GREY, long))
    assert where[:, 1].max() < 320 - 3
    assert (paint_label(GREY, long) != paint_label(GREY, scores(0.8, name="a" * 200))).any()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (95, 400), (400, 159)])
def test_what_is_too_small_to_read_stays_as_it_is(shape):
    small = np.full((*shape, 3), 7, dtype=np.uint8)
    assert not changed(small, scores(0.9)).any()


def test_letters_that_the_font_lacks():
    assert in_ascii("Épagneul ß 犬") == "Epagneul ? ?"
    assert changed(GREY, (ClassScore(0, "", 0.5),)).any()
