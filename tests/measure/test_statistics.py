from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.measure.statistics import median, median_ratio, percentiles

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30)


def test_percentiles_of_known_values():
    found = percentiles([float(value) for value in range(101)][::-1])
    assert found.model_dump() == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0}


def test_one_value_is_all_of_its_percentiles():
    assert set(percentiles([7.5]).model_dump().values()) == {7.5}


def test_ratios_are_taken_before_the_median():
    # Both halves of the second pair are slow: the ratio of medians would be 30 / 20.
    assert median_ratio([2.0, 300.0, 30.0], [1.0, 150.0, 20.0]) == 2.0
    assert median([3.0, 1.0, 2.0]) == 2.0


@settings(max_examples=50, derandomize=True)
@given(TIMES)
def test_percentiles_rise_and_stay_within_the_values(values):
    found = percentiles(values)
    slack = 1e-9 * max(values)
    assert min(values) - slack <= found.p50 <= found.p90 + slack <= found.p99 + 2 * slack <= max(values) + 3 * slack


@settings(max_examples=50, derandomize=True)
@given(TIMES, st.floats(0.5, 4.0))
def test_a_drifting_machine_does_not_change_the_ratio(values, factor):
    assert median_ratio([factor * value for value in values], values) == pytest.approx(factor)
