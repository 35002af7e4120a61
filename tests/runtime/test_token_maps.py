"""Exit maps and selection maps: colours, shares, windows, legends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dovit_deploy.runtime import token_maps
from dovit_deploy.runtime.results import FrameTokens, Region, RunTiming, TokenReport, Window
from dovit_deploy.runtime.token_maps import (
    HEAT,
    RAMP,
    UNSEEN_LIGHT,
    exit_levels,
    exit_shares,
    paint_selections,
    paint_tokens,
    selected_shares,
)
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
    """The painted colour of a token `position` (0 to 1) along the ramp on the grey image."""
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
        # A patch of 16 input pixels is 32 pixels of this image; stay off the lines between patches.
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


def test_patches_of_a_model_that_pads_all_sides_begin_before_the_image():
    grey = np.full((56, 96, 3), 100, dtype=np.uint8)
    tokens = replace(whole((56, 96)), pads=(4, 0))
    painted = paint_tokens(grey, tokens, GATES, legend=False).astype(int)
    # The first row of patches ends after 12 pixels of the image, the last has 12 left.
    for row, level in ((5, 0), (20, 1), (36, 2), (52, 3)):
        np.testing.assert_allclose(painted[row, 5], shade(level / 3), atol=1.5)
    assert (painted[12] < painted[13]).any() and (painted[44] < painted[45]).any()


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


def key_of(rgb, paint):
    """The key below an image, once it is checked that the image itself is as without one."""
    plain, painted = paint(rgb, legend=False), paint(rgb, legend=True)
    assert plain.shape == rgb.shape and painted.shape[1:] == rgb.shape[1:]
    np.testing.assert_array_equal(painted[: len(rgb)], plain)
    return painted[len(rgb) :]


def widths_in_bar(key, levels):
    """Pixels of each level in the fullest row of the key."""
    counts = [(np.abs(key.astype(int) - np.round(ramp(level))).max(axis=2) <= 1).sum(axis=1) for level in levels]
    return [int(rows[np.argmax(sum(counts))]) for rows in counts]


def written_in(monkeypatch, paint):
    """The texts that `paint` writes."""
    texts = []
    monkeypatch.setattr(token_maps, "write", lambda rgb, text, **where: texts.append(text))
    paint()
    return texts


def test_the_key_stands_below_the_image_and_divides_its_bar_by_the_shares():
    large = np.full((720, 1280, 3), 100, dtype=np.uint8)
    key = key_of(large, lambda rgb, legend: paint_tokens(rgb, whole(), GATES, legend=legend))
    widths = widths_in_bar(key, [level / 3 for level in range(4)])
    assert max(widths) - min(widths) <= 2 and sum(widths) > 1200


@pytest.mark.parametrize("width", [48, 64, 100, 200, 400, 1280, 3840])
def test_every_stage_is_labelled_whatever_its_share_is(width, monkeypatch):
    half = whole(keep=(FIRST, FIRST, FIRST))
    texts = written_in(monkeypatch, lambda: paint_tokens(np.zeros((80, width, 3), dtype=np.uint8), half, GATES))
    assert len(texts) == 5
    for text, layer, share in zip(texts, (2, 5, 8, "end"), ("25%", "0%", "0%", "75%"), strict=False):
        assert str(layer) in text and text.endswith(f" {share}")
    assert "saved" in texts[4]
    if width >= 1280:
        assert texts[0] == "stopped before layer 2: 25%" and texts[3] == "ran to the end: 75%"


def test_the_key_is_as_high_for_every_frame_of_a_video():
    # Wherever a row may end, with one digit and with three.
    for width in range(48, 700, 6):
        frame = np.full((32, width, 3), 100, dtype=np.uint8)
        decisions = ((FIRST, SECOND, THIRD), ([[1] * 6] * 4,) * 3, ([[0] * 6] * 4,) * 3)
        assert len({paint_tokens(frame, whole(keep=keep), GATES).shape for keep in decisions}) == 1, width


@pytest.mark.parametrize("shape", [(5, 7), (400, 47), (1, 1)])
def test_narrow_images_carry_no_key_and_keep_their_shape(shape):
    small = np.full((*shape, 3), 100, dtype=np.uint8)
    plain = paint_tokens(small, whole(), GATES, legend=False)
    np.testing.assert_array_equal(paint_tokens(small, whole(), GATES), plain)


def test_the_image_itself_is_not_painted_on():
    before = GREY.copy()
    paint_tokens(GREY, whole(), GATES)
    np.testing.assert_array_equal(GREY, before)


# The selection map: every part of the image in the colour of how often it was selected.

# Selected never, by the first alone, by the second alone (it waited and runs again), by both: a quarter each.
SELECTION_MAP_FIRST = np.array([[0, 1], [0, 1]], dtype=bool)
SELECTION_MAP_SECOND = np.array([[0, 0], [1, 1]], dtype=bool)


def tokens(*keep, size=(64, 64), region=None, kept=(5, 3, 3)):
    report = TokenReport(kept, 10.0, 6.0, keep, (), RunTiming(1.0, (1.0,)))
    return FrameTokens((Window(0, 0, *size, report),), size, 16, region=region)


def selection_map_shade(level):
    stops = np.linspace(0, 1, len(RAMP))
    ramp = np.array([np.interp(level, stops, channel) for channel in np.array(RAMP).T])
    return 100 * (1 - HEAT) + ramp * HEAT


def test_the_share_of_the_selections():
    shares = selected_shares(tokens(SELECTION_MAP_FIRST, SELECTION_MAP_SECOND))
    assert shares.shape == (64, 64)
    np.testing.assert_array_equal(shares[::32, ::32], [[0, 0.5], [0.5, 1]])
    assert (shares[:32, :32] == 0).all() and (shares[32:, 32:] == 1).all()


def test_grids_of_different_sizes_cover_the_same_image():
    fine = np.zeros((4, 4), dtype=bool)
    fine[0, 3] = True
    shares = selected_shares(tokens(fine, SELECTION_MAP_FIRST))
    assert shares[0, 48] == 1 and shares[0, 32] == 0.5 and shares[16, 63] == 0.5 and shares[63, 0] == 0
    # Neither 3 nor 7 divides 64, and every cell still has pixels.
    assert np.unique(selected_shares(tokens(np.eye(3, dtype=bool), np.eye(7, dtype=bool)))).tolist() == [0, 0.5, 1]


def test_without_selections_everything_ran():
    assert (selected_shares(tokens()) == 1).all()
    painted = paint_selections(GREY, tokens(), legend=False)
    np.testing.assert_allclose(painted, np.broadcast_to(selection_map_shade(1), painted.shape), atol=1.5)


def test_colours_lie_in_the_region_and_the_rest_is_dark():
    region = Region(top=10.2, left=50.7, height=100.0, width=100.0)
    painted = paint_selections(GREY, tokens(SELECTION_MAP_FIRST, SELECTION_MAP_SECOND, region=region), legend=False)
    assert painted.shape == GREY.shape and painted.dtype == np.uint8
    outside = np.ones(GREY.shape[:2], dtype=bool)
    outside[10:110, 51:151] = False
    assert (painted[outside] == round(100 * UNSEEN_LIGHT)).all()
    for row, column, level in ((12, 53, 0), (12, 149, 0.5), (108, 53, 0.5), (108, 149, 1)):
        np.testing.assert_allclose(painted[row, column], selection_map_shade(level), atol=1.5)


@pytest.mark.parametrize("region", [None, Region(0.4, 0.9, 0.1, 0.05)])
def test_a_image_of_one_pixel_is_painted(region):
    painted = paint_selections(np.full((1, 1, 3), 100, dtype=np.uint8), tokens(SELECTION_MAP_FIRST, region=region))
    assert painted.shape == (1, 1, 3)


def test_the_key_of_selections_stands_below_the_image_and_its_fields_are_as_wide_as_their_shares():
    large = np.full((480, 640, 3), 0, dtype=np.uint8)
    selected = tokens(SELECTION_MAP_FIRST, SELECTION_MAP_SECOND)
    key = key_of(large, lambda rgb, legend: paint_selections(rgb, selected, legend=legend))
    cold, middle, hot = widths_in_bar(key, (0, 0.5, 1))
    assert middle == pytest.approx(2 * cold, rel=0.02) and hot == pytest.approx(cold, rel=0.02)


def test_every_number_of_selections_is_labelled(monkeypatch):
    large = np.full((480, 1280, 3), 0, dtype=np.uint8)
    both = tokens(SELECTION_MAP_FIRST, SELECTION_MAP_FIRST)
    texts = written_in(monkeypatch, lambda: paint_selections(large, both))
    assert texts == [
        *("selected 0 of 2: 50%", "selected 1 of 2: 0%", "selected 2 of 2: 50%"),
        *("FLOPs saved 40%", "tokens 5 -> 3 -> 3"),
    ]
    assert written_in(monkeypatch, lambda: paint_selections(large, tokens()))[0].endswith("100%")
    many = tokens(SELECTION_MAP_FIRST, SELECTION_MAP_SECOND, kept=tuple(range(197, 150, -1)))
    assert paint_selections(large, many).shape[1] == 1280
