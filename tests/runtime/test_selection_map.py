"""The selection map: every part of the picture in the colour of how often it was selected, where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.runtime.heat import HEAT, RAMP
from dovit_deploy.runtime.results import FrameTokens, Region, RunTiming, TokenReport, Window
from dovit_deploy.runtime.selection_map import UNSEEN_LIGHT, paint_selections, selected_shares

GREY = np.full((128, 192, 3), 100, dtype=np.uint8)
# Selected never, by the first alone, by the second alone (it waited and runs again), by both: a quarter each.
FIRST = np.array([[0, 1], [0, 1]], dtype=bool)
SECOND = np.array([[0, 0], [1, 1]], dtype=bool)


def tokens(*keep, size=(64, 64), region=None, kept=(5, 3, 3)):
    report = TokenReport(kept, 10.0, 6.0, keep, (), RunTiming(1.0, (1.0,)))
    return FrameTokens((Window(0, 0, *size, report),), size, 16, region)


def shade(level):
    stops = np.linspace(0, 1, len(RAMP))
    ramp = np.array([np.interp(level, stops, channel) for channel in np.array(RAMP).T])
    return 100 * (1 - HEAT) + ramp * HEAT


def test_the_share_of_the_selections():
    shares = selected_shares(tokens(FIRST, SECOND))
    assert shares.shape == (64, 64)
    np.testing.assert_array_equal(shares[::32, ::32], [[0, 0.5], [0.5, 1]])
    assert (shares[:32, :32] == 0).all() and (shares[32:, 32:] == 1).all()


def test_grids_of_different_sizes_cover_the_same_picture():
    fine = np.zeros((4, 4), dtype=bool)
    fine[0, 3] = True
    shares = selected_shares(tokens(fine, FIRST))
    assert shares[0, 48] == 1 and shares[0, 32] == 0.5 and shares[16, 63] == 0.5 and shares[63, 0] == 0
    # Neither 3 nor 7 divides 64, and every cell still has its place.
    assert np.unique(selected_shares(tokens(np.eye(3, dtype=bool), np.eye(7, dtype=bool)))).tolist() == [0, 0.5, 1]


def test_without_selections_everything_ran():
    assert (selected_shares(tokens()) == 1).all()
    painted = paint_selections(GREY, tokens(), legend=False)
    np.testing.assert_allclose(painted, np.broadcast_to(shade(1), painted.shape), atol=1.5)


def test_colours_lie_in_the_region_and_the_rest_is_dark():
    region = Region(top=10.2, left=50.7, height=100.0, width=100.0)
    painted = paint_selections(GREY, tokens(FIRST, SECOND, region=region), legend=False)
    assert painted.shape == GREY.shape and painted.dtype == np.uint8
    outside = np.ones(GREY.shape[:2], dtype=bool)
    outside[10:110, 51:151] = False
    assert (painted[outside] == round(100 * UNSEEN_LIGHT)).all()
    for row, column, level in ((12, 53, 0), (12, 149, 0.5), (108, 53, 0.5), (108, 149, 1)):
        np.testing.assert_allclose(painted[row, column], shade(level), atol=1.5)


@pytest.mark.parametrize("region", [None, Region(0.4, 0.9, 0.1, 0.05)])
def test_a_picture_of_one_pixel_is_painted(region):
    painted = paint_selections(np.full((1, 1, 3), 100, dtype=np.uint8), tokens(FIRST, region=region))
    assert painted.shape == (1, 1, 3)


def test_the_legend_stands_at_the_bottom_and_leaves_the_rest():
    large = np.full((480, 640, 3), 100, dtype=np.uint8)
    for keep in ((FIRST, SECOND), ()):
        plain, painted = (paint_selections(large, tokens(*keep), legend=legend) for legend in (False, True))
        changed = np.flatnonzero((plain != painted).any(axis=(1, 2)))
        assert changed.min() >= 440 and changed.max() == 479
    many = tokens(FIRST, SECOND, kept=tuple(range(197, 150, -1)))
    assert paint_selections(large, many).shape == large.shape


def test_the_legends_fields_are_as_wide_as_their_shares():
    large = np.full((480, 640, 3), 0, dtype=np.uint8)
    row = paint_selections(large, tokens(FIRST, SECOND))[-12]
    ends = [np.flatnonzero((np.abs(row - np.array(color)) < 3).all(axis=1)) for color in (RAMP[0], RAMP[2], RAMP[-1])]
    cold, middle, hot = (len(columns) for columns in ends)
    assert middle == pytest.approx(2 * cold, rel=0.2) and hot == pytest.approx(cold, rel=0.2)
    assert ends[0].max() < ends[1].min() and ends[1].max() < ends[2].min()
