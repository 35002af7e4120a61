"""The bound of a mean: monotone, true as often as it says, and right where it can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.measure.bounds import images_needed, p_value, upper_bound

MEANS = st.floats(0.0, 1.0)
COUNTS = st.integers(1, 300)
CONFIDENCES = st.floats(0.5, 0.999)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(MEANS, MEANS, COUNTS, CONFIDENCES)
def test_it_rises_with_the_mean(one: float, other: float, count: int, confidence: float) -> None:
    low, high = sorted((one, other))
    assert upper_bound(low, count, confidence=confidence) <= upper_bound(high, count, confidence=confidence) + 1e-9


@settings(max_examples=40, derandomize=True, deadline=None)
@given(MEANS, COUNTS, CONFIDENCES, CONFIDENCES)
def test_it_rises_with_the_confidence_and_is_never_below_the_mean(mean: float, count: int, one: float, other: float):
    low, high = sorted((one, other))
    bound = upper_bound(mean, count, confidence=low)
    assert mean <= bound <= upper_bound(mean, count, confidence=high) + 1e-12 <= 1 + 1e-12


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.floats(0.0, 0.9), st.integers(1, 100), st.floats(0.6, 0.999))
def test_ten_times_the_images_never_loosen_it(mean: float, count: int, confidence: float) -> None:
    more = upper_bound(mean, 10 * count, confidence=confidence)
    assert more <= upper_bound(mean, count, confidence=confidence) + 1e-9


def test_without_any_difference_it_is_the_rule_of_three() -> None:
    """(1 - E)^n = 1 - C."""
    assert upper_bound(0.0, 150, confidence=0.95) == pytest.approx(1 - 0.05 ** (1 / 150))
    assert images_needed(0.02, confidence=0.95) == 149
    assert upper_bound(0.0, 149, confidence=0.95) <= 0.02 < upper_bound(0.0, 148, confidence=0.95)


def test_it_holds_as_often_as_it_says() -> None:
    """Whole images wrong with a chance of 10 %: the hardest case. Of 400 bounds at 90 %, no more than 10 % miss."""
    drawn = np.random.default_rng(3).binomial(60, 0.1, 400) / 60
    misses = sum(upper_bound(float(mean), 60, confidence=0.9) < 0.1 for mean in drawn)
    assert misses <= 40


def test_p_values_at_the_ends() -> None:
    assert p_value(0.5, 10, limit=0.5) == 1.0
    assert p_value(0.5, 10, limit=1.0) == 0.0
    assert p_value(0.0, 10, limit=0.3) == pytest.approx(0.7**10)
