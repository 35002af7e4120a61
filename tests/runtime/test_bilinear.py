from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.runtime.bilinear import Axis, composed, spans, taps

from .plain_pixels import interpolated

lengths = st.integers(1, 70)


def dense(weighted, source):
    matrix = np.zeros((len(weighted.nodes), source))
    for row, (nodes, weights) in enumerate(zip(weighted.nodes, weighted.weights, strict=True)):
        np.add.at(matrix[row], nodes, weights)
    return matrix


@given(lengths, lengths)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_taps_are_the_plain_resize(source, target):
    values = np.random.default_rng(source).normal(size=source)
    expected = interpolated(values[None, None], (1, target))[0, 0]
    np.testing.assert_allclose(dense(taps(source, target), source) @ values, expected, atol=1e-12)


def test_equal_sizes_change_nothing():
    np.testing.assert_array_equal(dense(taps(9, 9), 9), np.eye(9))


def test_one_sample_fills_everything():
    np.testing.assert_array_equal(dense(taps(1, 4), 1), np.ones((4, 1)))


@given(lengths, lengths, lengths)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_composed_is_the_product_of_the_matrices(grid, middle, size):
    first, second = taps(grid, middle), taps(middle, size)
    np.testing.assert_allclose(
        dense(composed(first, second), grid), dense(second, middle) @ dense(first, grid), atol=1e-12
    )


@given(lengths, lengths, st.integers(0, 9), lengths, st.integers(1, 80))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_spans_cover_the_axis_and_give_what_the_two_resizes_give(grid, canvas, cut, size, step):
    axis = Axis(grid=grid, canvas=canvas, visible=max(1, canvas - cut), size=size)
    nodes = np.random.default_rng(grid).normal(size=grid)
    at_input = interpolated(nodes[None, None], (1, canvas))[:, :, : axis.visible]
    expected = interpolated(at_input, (1, size))[0, 0]
    pieces = spans(axis, step)
    assert [piece.start for piece in pieces] == list(range(0, size, step))
    assert [piece.stop for piece in pieces] == [min(start + step, size) for start in range(0, size, step)]
    found = np.concatenate([piece.matrix @ nodes[piece.first : piece.last] for piece in pieces])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_span_names_only_nodes_that_it_reads():
    # Of 4 nodes over 64 pixels the first eight read one, and no pixel reads more than two.
    first, *rest = spans(Axis(grid=4, canvas=64, visible=64, size=64), 8)
    assert (first.first, first.last) == (0, 1)
    assert all(piece.last - piece.first <= 2 for piece in rest)
