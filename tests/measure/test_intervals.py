"""Intervals of drops hold at their level."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from dovit_deploy.datasets.recording import Moment
from dovit_deploy.measure.intervals import (
    Blocks,
    accuracy_drop_interval,
    blocks_of,
    mean_interval,
    miou_drop_interval,
    miou_drop_interval_over_seeds,
)
from dovit_deploy.measure.metrics import ClassCounts, accuracy


def counts(share: np.ndarray, *, pixels: int = 1000) -> ClassCounts:
    """Two classes of `pixels` each; `share` (n,) of each is predicted right, the rest as the other class."""
    hit = np.rint(share[:, None] * np.full((1, 2), pixels)).astype(np.int64)
    full = np.full_like(hit, pixels)
    return ClassCounts(hit, full, full)


def every_second(drive: str, seconds: Iterable[int]) -> list[Moment]:
    return [Moment(drive, float(second)) for second in seconds]


def test_blocks_hold_ten_seconds_of_one_drive():
    moments = every_second("a", range(3, 28)) + every_second("b", range(30))
    blocks = blocks_of(len(moments), moments)
    assert blocks.number.tolist() == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 10 + [4] * 10 + [5] * 10
    assert (blocks.count, blocks.longest, blocks.seconds) == (6, 10, 10.0)


def test_seconds_count_not_images():
    """15 images a second make few blocks, one image a minute as many as there are images."""
    clip = [Moment("a", number / 15) for number in range(101)]
    assert blocks_of(101, clip).count == 1
    assert blocks_of(301, [Moment("a", number / 15) for number in range(301)]).count == 3
    assert blocks_of(5, [Moment("a", 60.0 * number) for number in range(5)]).count == 5


def test_pieces_from_which_all_images_are_missing_are_no_blocks_and_order_does_not_matter():
    moments = every_second("a", (0, 5, 95, 99, 100)) + every_second("b", (7,)) + every_second("a", (96,))
    assert blocks_of(7, moments).number.tolist() == [0, 0, 1, 1, 2, 3, 1]


def test_the_frame_that_begins_a_piece_is_not_lost_to_rounding():
    """At 29.97 frames a second, frame by frame from an odd start."""
    for start in (0, 1, 7, 930):
        moments = [Moment("a", (start + 29.97 * 10 * piece) / 29.97) for piece in range(40)]
        assert blocks_of(40, moments).count == 40


def test_independent_images_are_blocks_of_one():
    blocks = blocks_of(12, None)
    assert (blocks.count, blocks.longest, blocks.seconds) == (12, 1, None)


def test_blocks_of_some_images_are_numbered_from_zero():
    blocks = blocks_of(40, every_second("a", range(40))).of([5, 12, 13, 39])
    assert blocks.number.tolist() == [0, 1, 1, 2]
    assert (blocks.count, blocks.seconds) == (3, 10.0)


@pytest.mark.parametrize(("images", "has_one"), [(1, False), (7, False), (8, True)])
def test_seven_blocks_say_nothing_and_eight_do(images: int, has_one: bool):
    both = counts(np.full(images, 0.9))
    assert (miou_drop_interval(both, both, blocks_of(images, None)) is not None) is has_one
    moments = every_second("a", range(0, 10 * images, 10))
    assert (miou_drop_interval(both, both, blocks_of(images, moments)) is not None) is has_one
    hits = np.ones(images, bool)
    assert (accuracy_drop_interval(hits, hits) is not None) is has_one


def test_what_differs_between_seeds_is_in_the_interval():
    share = np.random.default_rng(1).uniform(0.5, 0.9, 40)
    before, blocks = counts(share), blocks_of(40, None)
    # One seed loses 2 points, the other 6.
    after = [counts(share - 0.02), counts(share - 0.06)]
    alone = [miou_drop_interval(before, one, blocks) for one in after]
    assert miou_drop_interval_over_seeds([before], after[:1], blocks) == alone[0]
    low, high = miou_drop_interval_over_seeds([before, before], after, blocks)
    # Sets of one of them alone are drawn, too.
    assert low == pytest.approx(alone[0][0], abs=0.2) and high == pytest.approx(alone[1][1], abs=0.2)
    assert miou_drop_interval_over_seeds([before], after[:1], blocks_of(7, None)) is None


def test_the_same_answer_has_no_drop_at_all():
    both = counts(np.random.default_rng(0).uniform(0.3, 0.9, 40))
    blocks = blocks_of(40, None)
    assert miou_drop_interval(both, both, blocks) == (0.0, 0.0)


def test_pairing_cancels_what_both_answers_share():
    """Images of very different difficulty, the same small loss on each: far narrower than the spread of mIoU."""
    share = np.random.default_rng(1).uniform(0.3, 0.9, 60)
    blocks = blocks_of(60, None)
    low, high = miou_drop_interval(counts(share), counts(share - 0.01), blocks)
    assert 0 < low < high
    assert high - low < 0.2
    dense = counts(share)
    spread = [dense.weighted(np.random.default_rng(seed).integers(0, 2, 60)).mious for seed in range(200)]
    assert np.ptp(spread) > 1


def test_longer_blocks_widen_the_interval_where_neighbours_are_alike():
    drop = np.repeat([0.0, 0.1, 0.0, 0.12, 0.0, 0.08, 0.0, 0.1], 10)
    dense, dynamic = counts(np.full(80, 0.8)), counts(0.8 - drop)
    alone = miou_drop_interval(dense, dynamic, blocks_of(80, None))
    together = miou_drop_interval(dense, dynamic, blocks_of(80, every_second("a", range(80))))
    assert np.diff(together)[0] > 2 * np.diff(alone)[0]
    point = dense.miou - dynamic.miou
    assert together[0] < point < together[1]


def test_it_covers_the_true_drop_about_as_often_as_it_says():
    """Blocks drawn from a known distribution: the 90 % interval holds its mean in 80 to 97 % of 200 sets."""
    draw = np.random.default_rng(2)
    pixels = 10_000
    held = 0
    dense = counts(np.full(40, 0.8), pixels=pixels)
    truth = dense.miou - counts(np.array([0.8 - 0.05]), pixels=pixels).miou
    for _ in range(200):
        drop = draw.uniform(0, 0.1, 40)
        low, high = miou_drop_interval(
            dense, counts(0.8 - drop, pixels=pixels), Blocks(np.arange(40)), resamples=300, level=0.9
        )
        held += low <= truth <= high
    assert 0.8 <= held / 200 <= 0.97


def test_it_is_the_same_every_time_and_moves_with_the_seed():
    draw = np.random.default_rng(3)
    dense, dynamic = counts(draw.uniform(0.5, 0.9, 50)), counts(draw.uniform(0.5, 0.9, 50))
    blocks = Blocks(np.arange(50) // 2)
    assert miou_drop_interval(dense, dynamic, blocks) == miou_drop_interval(dense, dynamic, blocks)
    assert miou_drop_interval(dense, dynamic, blocks, seed=1) != miou_drop_interval(dense, dynamic, blocks)
    wide, narrow = (
        miou_drop_interval(dense, dynamic, blocks, level=0.99),
        miou_drop_interval(dense, dynamic, blocks, level=0.5),
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("empty", [0, 1])
def test_blocks_without_labels_are_no_obstacle(empty):
    share = np.full(16, 0.8)
    dense = counts(share)
    parts = [part.copy() for part in (dense.hit, dense.true, dense.predicted)]
    for part in parts:
        part[: 8 * empty] = 0
    blank = ClassCounts(*parts)
    assert miou_drop_interval(blank, blank, Blocks(np.repeat(np.arange(8), 2))) == (0.0, 0.0)


# The interval of a drop in accuracy, against a bootstrap that draws images.


def drawn_interval(before, after, *, resamples, seed):
    """The interval by drawing images one by one."""
    draw = np.random.default_rng(seed).integers(0, len(before), (resamples, len(before)))
    drops = 100 * (before[draw].mean(axis=1) - after[draw].mean(axis=1))
    return np.quantile(drops, [0.025, 0.975])


@pytest.mark.parametrize(("lost", "won", "images"), [(30, 10, 400), (3, 0, 60), (0, 0, 50), (5, 25, 300)])
def test_the_interval_is_that_of_drawing_images(lost, won, images):
    before, after = np.zeros(images, bool), np.zeros(images, bool)
    before[: lost + 20], after[lost : lost + 20] = True, True
    after[lost + 20 : lost + 20 + won] = True
    low, high = accuracy_drop_interval(before, after, resamples=20000)
    wanted = drawn_interval(before, after, resamples=20000, seed=1)
    # Within one image: the drawn drops are multiples of it.
    assert (low, high) == pytest.approx(tuple(wanted), abs=100 / images + 1e-9)
    assert low <= accuracy(before) - accuracy(after) <= high


def test_it_is_paired():
    # Right on the same images: no drop, however it is drawn. On different ones: none on average, and unsure.
    same = np.arange(100) % 2 == 0
    assert accuracy_drop_interval(same, same) == (0, 0)
    low, high = accuracy_drop_interval(same, ~same)
    assert low < -10 and high > 10


def test_the_draw_is_the_same_again():
    before, after = (np.random.default_rng(number).random(50) < 0.7 for number in range(2))
    assert accuracy_drop_interval(before, after) == accuracy_drop_interval(before, after)


def test_a_mean_is_as_sure_as_its_blocks() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(3.0, 1.0, 400)
    low, high = mean_interval(values.tolist(), Blocks(np.arange(400)))
    assert low < values.mean() < high
    # The standard error of a mean of independent values, times 3.92.
    assert high - low == pytest.approx(3.92 * values.std() / 20, rel=0.1)
    # Ten images of one value are one piece of evidence, and not ten.
    alike = np.repeat(values[:40], 10)
    wide = mean_interval(alike.tolist(), Blocks(np.arange(400) // 10))
    assert wide[1] - wide[0] == pytest.approx(3.92 * values[:40].std() / 40**0.5, rel=0.1)
    assert mean_interval([1.0] * 70, Blocks(np.arange(70) // 10)) is None
