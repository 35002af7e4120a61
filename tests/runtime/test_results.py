"""Logits to probabilities and names: softmax, order, ties, and what cannot be answered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dovit_deploy.errors import CheckError
from dovit_deploy.runtime.results import ClassScore, most_probable, probabilities_from_logits, scores_from_probabilities

LOGITS = arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-2000, 2000, width=32))


@given(LOGITS)
def test_probabilities_are_torchs_softmax(logits):
    ours = probabilities_from_logits(logits)
    assert ours.sum() == pytest.approx(1)
    np.testing.assert_allclose(ours, torch.softmax(torch.from_numpy(logits).double(), 0).numpy(), rtol=1e-9, atol=0)


@given(LOGITS, st.integers(1, 8))
def test_the_most_probable_come_first_and_of_equals_the_lower_id(logits, top):
    chosen = most_probable(np.round(logits.astype(np.float64)), top=top)
    naive = sorted(range(len(logits)), key=lambda number: (-round(float(logits[number])), number))[:top]
    assert chosen.tolist() == naive


def test_scores_carry_names():
    scores = scores_from_probabilities(np.array([0.1, 0.6, 0.3]), ["a", "b", "c"], top=2)
    assert scores == (ClassScore(1, "b", 0.6), ClassScore(2, "c", 0.3))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_no_answer(wrong):
    with pytest.raises(CheckError, match="not finite"):
        probabilities_from_logits(np.array([0, wrong, 1], dtype=np.float32))
