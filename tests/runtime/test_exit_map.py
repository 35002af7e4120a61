from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.runtime.exit_map import exit_levels, exit_shares, paint_tokens
from dovit_deploy.runtime.heat import HEAT, RAMP
from dovit_deploy.runtime.results import FrameTokens, Window
from tests.fakes import report_from_keep

GATES = (2, 5, 8)
GREY = np.full((128, 192, 3), 100, dtype=np.uint8)
# One row of four patches per fate: stopped at the first, second, third gate, never.
FIRST = [[0] * 6, [1] * 6, [1] * 6, [1] * 6]
SECOND = [[0] * 6, [0] * 6, [1] * 6, [1] * 6]
THIRD = [[0] * 6, [0] * 6, [0] * 6, [1] * 6]


def whole(size=(64, 96), keep=(FIRST, SECOND, THIRD)):
    return FrameTokens((Window(0, 0, *size, report_from_keep(*keep)),), size, 16)


def shade(position):
    """The painted colour of a token `position` (0 to 1) along the ramp on the grey picture."""
    return 100 * (1 - HEAT) + ramp(position) * HEAT


def ramp(position):
    stops = np.linspace(0, 1, len(RAMP))
    return np.array([np.interp(position, stops, channel) for channel in np.array(RAMP).T])


def test_levels_count_the_gates_that_a_patch_passed():
    levels = exit_levels(whole().windows[0], 3)
    np.testing.assert_array_equal(levels, np.arange(4)[:, None].repeat(6, axis=1))


def test_shares_of_a_known_report():
    assert exit_shares(whole(), 3) == (0.25, 0.25, 0.25, 0.25)
    half = whole(keep=(FIRST, FIRST, FIRST))
    assert exit_shares(half, 3) == (0.25, 0.0, 0.0, 0.75)


def test_every_patch_is_painted_where_it_lies_in_the_colour_of_its_exit():
    painted = paint_tokens(GREY, whole(), GATES, legend=False)
    assert painted.shape == GREY.shape and painted.dtype == np.uint8
    for level in range(4):
        # A patch of 16 input pixels is 32 pixels of this picture; stay off the lines between patches.
        inside = painted[32 * level + 2 : 32 * level + 30, 2:30]
        np.testing.assert_allclose(inside, np.broadcast_to(shade(level / 3), inside.shape), atol=1.5)


def test_lines_stand_between_patches():
    painted = paint_tokens(GREY, whole(), GATES, legend=False).astype(int)
    columns = np.abs(np.diff(painted[5].sum(axis=1))) > 3
    assert np.flatnonzero(columns).tolist() == sorted([31, 32, 63, 64, 95, 96, 127, 128, 159, 160])


def test_patches_keep_sharp_edges_at_any_scale():
    # Patches of 8 or 9 pixels are too small for lines between them, so only the four colours are there.
    painted = paint_tokens(np.full((35, 51, 3), 100, dtype=np.uint8), whole(), GATES, legend=False)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 4


def test_patches_that_reach_beyond_the_border_are_cut():
    # 56 of 64 rows are real: the last row of patches is half as high as the others.
    painted = paint_tokens(np.full((56, 96, 3), 100, dtype=np.uint8), whole((56, 96)), GATES, legend=False)
    np.testing.assert_allclose(painted[50, 5], shade(1.0), atol=1.5)
    np.testing.assert_allclose(painted[44, 5], shade(2 / 3), atol=1.5)


def test_the_mean_is_shown_where_windows_overlap():
    never, at_once = np.ones((2, 2)), np.zeros((2, 2))
    windows = (
        Window(0, 0, 32, 32, report_from_keep(never)),
        Window(0, 16, 32, 32, report_from_keep(at_once)),
    )
    tokens = FrameTokens(windows, (32, 48), 16)
    painted = paint_tokens(np.full((32, 48, 3), 100, dtype=np.uint8), tokens, (4,), legend=False)
    for column, level in ((8, 1.0), (24, 0.5), (40, 0.0)):
        np.testing.assert_allclose(painted[16, column], shade(level), atol=2.5)


@pytest.mark.parametrize("gates", [(), GATES])
def test_a_dense_run_is_all_hot(gates):
    report = report_from_keep(FIRST, SECOND, THIRD)
    dense = type(report)((25,), 10.0, 10.0, (), (), report.timing)
    tokens = FrameTokens((Window(0, 0, 64, 96, dense),), (64, 96), 16)
    assert exit_shares(tokens, len(gates))[-1] == 1.0
    painted = paint_tokens(GREY, tokens, gates)
    np.testing.assert_allclose(painted[10, 10], shade(1.0), atol=1.5)


def test_the_legend_divides_the_bar_by_the_shares():
    large = np.full((720, 1280, 3), 100, dtype=np.uint8)
    plain, painted = (paint_tokens(large, whole(), GATES, legend=legend) for legend in (False, True))
    rows = np.flatnonzero((plain != painted).any(axis=(1, 2)))
    assert rows.min() >= 640 and rows.max() == 719
    # A row of the bar just above the letters.
    strip = painted[rows.min() + 8].astype(int)
    colors = [np.round(ramp(level / 3)) for level in range(4)]
    widths = [int((np.abs(strip - color).max(axis=1) <= 1).sum()) for color in colors]
    assert max(widths) - min(widths) <= 2 and min(widths) > 200


def test_small_pictures_carry_no_legend_and_keep_their_shape():
    for shape in ((5, 7), (95, 400), (400, 159)):
        small = np.full((*shape, 3), 100, dtype=np.uint8)
        plain = paint_tokens(small, whole(), GATES, legend=False)
        np.testing.assert_array_equal(paint_tokens(small, whole(), GATES), plain)
    assert paint_tokens(small[:1, :1], whole(), GATES).shape == (1, 1, 3)
    assert paint_tokens(np.zeros((300, 160, 3), dtype=np.uint8), whole(), GATES).shape == (300, 160, 3)


def test_the_picture_itself_is_not_painted_on():
    before = GREY.copy()
    paint_tokens(GREY, whole(), GATES)
    np.testing.assert_array_equal(GREY, before)
