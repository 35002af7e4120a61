"""The class map: equal to plain interpolation, and never a class ruled out that wins somewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.runtime import class_map as subject
from dovit_deploy.runtime.class_map import (
    BAND,
    TILE,
    Axis,
    _open_classes,
    class_map,
    composed,
    nodes_of_spans,
    spans,
    stretched_class_map,
    taps,
)

from .plain_pixels import assert_is_argmax, interpolated, stretched


def plain_axes(grid, size):
    return tuple(Axis(grid=n, canvas=s, visible=s, size=s) for n, s in zip(grid, size, strict=True))


def scene(classes, grid, *, seed, spread):
    """Logits with large regions of one clear winner, and noise that makes the borders between them messy."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, size=(2, 3))
    owner = coarse[np.arange(grid[0]) * 2 // grid[0]][:, np.arange(grid[1]) * 3 // grid[1]]
    logits = random.normal(scale=spread, size=(classes, *grid))
    return (logits + 6.0 * (owner == np.arange(classes)[:, None, None])).astype(np.float32)


@given(
    st.integers(1, 20),
    st.tuples(st.integers(1, 12), st.integers(1, 14)),
    st.tuples(st.integers(1, 60), st.integers(1, 90)),
    st.tuples(st.integers(1, 130), st.integers(1, 210)),
    st.integers(0, 20),
    st.sampled_from([0.1, 1.0, 4.0]),
)
@settings(max_examples=80, derandomize=True, deadline=None)
def test_is_the_argmax_of_the_resized_logits(classes, grid, input_size, image_size, padding, spread):
    canvas = (input_size[0] + padding, input_size[1] + padding)
    logits = scene(classes, grid, seed=classes + padding, spread=spread)
    rows, columns = (
        Axis(grid=grid[axis], canvas=canvas[axis], visible=input_size[axis], size=image_size[axis]) for axis in (0, 1)
    )
    found = stretched_class_map(logits, rows, columns)
    assert_is_argmax(found, stretched(logits, input_size, image_size, canvas=canvas))


@given(
    st.sampled_from([1, 2, 3, 19, 150, 256]),
    st.tuples(st.integers(1, 12), st.integers(1, 14)),
    st.tuples(st.integers(1, 60), st.integers(1, 200)),
    st.sampled_from(["noise", "ties", "equal", "huge", "tiny", "sure"]),
    st.sampled_from([1, 3000, 10**9]),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_whether_classes_are_ruled_out_changes_no_pixel(classes, grid, size, kind, at_once):
    random = np.random.default_rng(classes)
    noise = random.normal(size=(classes, *grid)).astype(np.float32)
    logits = {
        "noise": noise,
        "ties": np.round(noise),
        "equal": np.full_like(noise, -0.25),
        "huge": noise * np.float32(1e37),
        "tiny": noise * np.float32(1e-37),
        "sure": scene(classes, grid, seed=0, spread=0.5),
    }[kind]
    axes = plain_axes(grid, size)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subject, "HARDLY", 2.0)
        ruled_out = stretched_class_map(logits, *axes)
        patched.setattr(subject, "HARDLY", -1.0)
        patched.setattr(subject, "AT_ONCE", at_once)
        found = stretched_class_map(logits, *axes)
    np.testing.assert_array_equal(found, ruled_out)
    assert found.flags.c_contiguous and found.dtype == np.uint8 and found.shape == size


def test_only_where_hardly_a_class_is_ruled_out_all_are_interpolated(monkeypatch):
    taken, winners_of_all = [], subject._winners_of_all
    monkeypatch.setattr(subject, "_winners_of_all", lambda *given: taken.append(given) or winners_of_all(*given))
    axes = plain_axes((45, 80), (360, 640))
    stretched_class_map(scene(11, (45, 80), seed=5, spread=0.5), *axes)
    assert not taken
    stretched_class_map(np.random.default_rng(0).normal(size=(11, 45, 80)).astype(np.float32), *axes)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "constants", [{"HARDLY": -1.0}, {"HARDLY": 2.0}, {"CHUNK": 1}, {"CHUNK": 10**9}, {"SAMPLED": 1}]
)
@pytest.mark.parametrize("spread", [0.5, 2.0, 50.0])
def test_how_tiles_are_grouped_changes_nothing(monkeypatch, constants, spread):
    logits = scene(7, (9, 16), seed=3, spread=spread)
    # Neither side is a multiple of a tile's.
    axes = plain_axes((9, 16), (150, 700))
    expected = stretched_class_map(logits, *axes)
    for name, value in constants.items():
        monkeypatch.setattr(f"dovit_deploy.runtime.class_map.{name}", value)
    np.testing.assert_array_equal(stretched_class_map(logits, *axes), expected)


@pytest.mark.parametrize("grid", [(92, 120), (23, 30), (45, 80)])
@pytest.mark.parametrize("spread", [0.5, 3.0, 1000.0])
def test_a_whole_frame_is_the_argmax(grid, spread):
    logits = scene(11, grid, seed=5, spread=spread)
    found = stretched_class_map(logits, *plain_axes(grid, (360, 640)))
    assert_is_argmax(found, stretched(logits, (360, 640), (360, 640), canvas=(360, 640)))


def test_equal_logits_go_to_the_lowest_class():
    logits = np.full((6, 5, 7), 0.25, dtype=np.float32)
    logits[0] = -1.0
    logits[5, 2:] = 0.5
    found = stretched_class_map(logits, *plain_axes((5, 7), (50, 200)))
    assert set(found[:10].reshape(-1)) == {1}
    assert set(found[30:].reshape(-1)) == {5}
    np.testing.assert_array_equal(class_map(logits), np.where(np.arange(5)[:, None] >= 2, 5, 1).repeat(7, axis=1))


def test_a_class_that_wins_at_no_node_can_win_between_them():
    logits = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.9]]], dtype=np.float32)
    assert 2 in stretched_class_map(logits, *plain_axes((1, 2), (8, 64)))


def test_classes_that_cannot_win_are_left_out_and_no_other():
    logits = scene(9, (12, 20), seed=1, spread=0.5)
    rows, columns = plain_axes((12, 20), (240, 640))
    bands, tiles = spans(rows, BAND), spans(columns, TILE)
    is_open = _open_classes(logits, nodes_of_spans(rows, BAND), nodes_of_spans(columns, TILE))
    winners = stretched(logits, (240, 640), (240, 640), canvas=(240, 640)).argmax(axis=0)
    for row, band in enumerate(bands):
        for column, tile in enumerate(tiles):
            present = np.unique(winners[band.start : band.stop, tile.start : tile.stop])
            assert is_open[present, row, column].all()
    counts = is_open.sum(axis=0)
    assert counts.min() == 1 and np.mean(counts) < 5, "nothing was ruled out: the speed is lost"


def test_where_two_regions_meet_only_their_classes_are_open():
    logits = np.random.default_rng(0).uniform(0, 1, size=(9, 6, 8)).astype(np.float32)
    logits[3, :, :4] += 6.0
    logits[7, :, 4:] += 6.0
    rows, columns = plain_axes((6, 8), (96, 256))
    is_open = _open_classes(logits, nodes_of_spans(rows, BAND), nodes_of_spans(columns, TILE))
    sets = {tuple(np.flatnonzero(tile)) for tile in is_open.reshape(9, -1).T}
    assert sets == {(3,), (3, 7), (7,)}


def test_close_calls_are_not_ruled_out():
    # Behind everywhere, by less than rounding: it must stay open.
    logits = np.stack([np.full((4, 4), 1.0), np.full((4, 4), 1.0 - 1e-7)]).astype(np.float32)
    rows, columns = plain_axes((4, 4), (32, 64))
    assert _open_classes(logits, nodes_of_spans(rows, 48), nodes_of_spans(columns, 64)).all()


def test_class_numbers_up_to_255():
    logits = np.zeros((256, 3, 3), dtype=np.float32)
    logits[200, :, 0], logits[255, :, 2] = 5.0, 9.0
    found = stretched_class_map(logits, *plain_axes((3, 3), (30, 90)))
    assert found[:, 0].tolist() == [200] * 30 and found[:, -1].tolist() == [255] * 30
    np.testing.assert_array_equal(class_map(logits), [[200, 0, 255]] * 3)


@given(st.integers(1, 40), st.integers(1, 120), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_without_stretching_it_is_numpys_argmax(classes, height, width, seed):
    # Halves make many exact ties.
    logits = np.round(np.random.default_rng(seed).normal(size=(classes, height, width)) * 2) / 2
    logits = logits.astype(np.float32)
    before = logits.copy()
    np.testing.assert_array_equal(class_map(logits), logits.argmax(axis=0))
    np.testing.assert_array_equal(logits, before)


def test_a_nan_rules_nothing_out():
    logits = scene(4, (6, 6), seed=0, spread=0.1)
    clean = stretched_class_map(logits, *plain_axes((6, 6), (96, 128)))
    logits[3, 0, 0] = np.nan
    found = stretched_class_map(logits, *plain_axes((6, 6), (96, 128)))
    np.testing.assert_array_equal(found[60:, 80:], clean[60:, 80:])


def test_where_nothing_is_a_number_there_is_still_a_class(monkeypatch):
    monkeypatch.setattr(subject, "HARDLY", -1.0)
    logits = scene(4, (6, 6), seed=0, spread=0.1)
    logits[:, :3] = np.nan
    assert stretched_class_map(logits, *plain_axes((6, 6), (96, 128))).max() < 4


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
