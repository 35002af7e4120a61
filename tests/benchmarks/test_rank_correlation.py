"""Rank correlation against values by hand, and what no monotone change of the values may alter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rank_correlation import ranks, spearman, spearman_interval

whole = st.integers(-20, 20)


def test_equal_values_share_their_ranks():
    assert ranks([30, 10, 20]).tolist() == [3, 1, 2]
    assert ranks([5, 1, 5, 5, 2]).tolist() == [4, 1, 4, 4, 2]
    assert ranks([7, 7]).tolist() == [1.5, 1.5]


def test_by_hand():
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 9], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(whole, whole), min_size=3, max_size=20))
def test_only_the_order_matters(pairs):
    first, second = zip(*pairs, strict=True)
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    value = spearman(first, second)
    assert -1 - 1e-12 <= value <= 1 + 1e-12
    assert spearman([number**3 for number in first], second) == pytest.approx(value)
    assert spearman(second, first) == pytest.approx(value)
    assert spearman([-number for number in first], second) == pytest.approx(-value)
    assert spearman(first, [2 * number + 1 for number in first]) == pytest.approx(1)


def test_the_interval_holds_the_value_and_shrinks_with_more_pairs():
    rng = np.random.default_rng(0)
    widths = []
    for count in (20, 200):
        first = rng.normal(size=count)
        second = first + rng.normal(size=count)
        low, high = spearman_interval(first, second, seed=1, resamples=400)
        assert low < spearman(first, second) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert spearman_interval([1, 2, 3, 4], [1, 2, 3, 4], seed=1, resamples=50) == (1, 1)
    again = spearman_interval(first, second, seed=1, resamples=400)
    assert again == (low, high)
