from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.measure.controls import first_gate_keep, gate_efficiency, random_keep
from dovit_deploy.runtime.gate_inputs import index_from_keep
from tests.tiny import tiny_spec

SPEC = tiny_spec(gates=(1, 2, 3))


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.integers(0, SPEC.patches), min_size=3, max_size=3), st.integers(0, 1000))
def test_random_stopping_keeps_the_counts_and_who_stopped_stays_stopped(counts, seed):
    kept = (SPEC.tokens, *(SPEC.extra_tokens + count for count in sorted(counts, reverse=True)))
    keep = random_keep(kept, SPEC, rng=np.random.default_rng(seed))
    index = index_from_keep(keep, SPEC)
    assert [len(entry) for entry in index] == list(kept[1:])


def test_random_stopping_is_spread_over_the_picture_and_follows_the_seed():
    kept = (SPEC.tokens, *[SPEC.extra_tokens + SPEC.patches // 2] * 3)
    drawn = [random_keep(kept, SPEC, rng=np.random.default_rng(seed)) for seed in range(400)]
    share = np.mean([keep[0] for keep in drawn], axis=0)
    assert abs(share - (SPEC.patches // 2) / SPEC.patches).max() < 0.12
    again = random_keep(kept, SPEC, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(again, drawn[7])


def test_the_first_gate_stops_everything():
    assert [len(entry) for entry in index_from_keep(first_gate_keep(SPEC), SPEC)] == [SPEC.extra_tokens] * 3


def test_gate_efficiency():
    assert gate_efficiency(rule=60, random=50, oracle=70) == 0.5
    assert gate_efficiency(rule=45, random=50, oracle=60) == -0.5
    assert gate_efficiency(rule=60, random=60, oracle=60) is None
    assert gate_efficiency(rule=60, random=60, oracle=59) is None
