from __future__ import annotations

import numpy as np
import pytest

from dovit_deploy.measure.bootstrap import Blocks, blocks_from_stems, drive_from_stem, drop_interval
from dovit_deploy.measure.metrics import ClassCounts


def counts(share: np.ndarray, *, pixels: int = 1000) -> ClassCounts:
    """Two classes of `pixels` each; `share` (n,) of each is called right, the rest is called the other."""
    hit = np.rint(share[:, None] * np.full((1, 2), pixels)).astype(np.int64)
    full = np.full_like(hit, pixels)
    return ClassCounts(hit, full, full)


def test_blocks_hold_ten_neighbours_of_one_drive():
    stems = [f"a_{number}" for number in range(25)] + [f"b_1_{number}" for number in range(30)]
    blocks = blocks_from_stems(stems)
    assert blocks.number.tolist() == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 10 + [4] * 10 + [5] * 10
    assert blocks.count == 6
    assert drive_from_stem("0016E5_07959") == "0016E5"


def test_small_sets_have_shorter_blocks():
    assert blocks_from_stems([f"a_{number}" for number in range(12)]).count == 6
    assert blocks_from_stems(["a", "b"]).number.tolist() == [0, 1]
    assert blocks_from_stems(["a"]).count == 1


def test_one_block_says_nothing():
    both = counts(np.array([0.9]))
    assert drop_interval(both, both, blocks_from_stems(["a_1"])) is None


def test_the_same_answer_has_no_drop_at_all():
    both = counts(np.random.default_rng(0).uniform(0.3, 0.9, 40))
    blocks = blocks_from_stems([f"a_{number}" for number in range(40)])
    assert drop_interval(both, both, blocks) == (0.0, 0.0)


def test_pairing_cancels_what_both_answers_share():
    """Images of very different difficulty, the same small loss on each: far narrower than the spread of mIoU."""
    share = np.random.default_rng(1).uniform(0.3, 0.9, 60)
    blocks = blocks_from_stems([f"a_{number}" for number in range(60)], length=1)
    low, high = drop_interval(counts(share), counts(share - 0.01), blocks)
    assert 0 < low < high
    assert high - low < 0.2
    dense = counts(share)
    spread = [dense.weighted(np.random.default_rng(seed).integers(0, 2, 60)).mious for seed in range(200)]
    assert np.ptp(spread) > 1


def test_longer_blocks_widen_the_interval_where_neighbours_are_alike():
    drop = np.repeat([0.0, 0.1, 0.0, 0.12, 0.0, 0.08], 10)
    dense, dynamic = counts(np.full(60, 0.8)), counts(0.8 - drop)
    stems = [f"a_{number}" for number in range(60)]
    alone = drop_interval(dense, dynamic, blocks_from_stems(stems, length=1))
    together = drop_interval(dense, dynamic, blocks_from_stems(stems))
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
        low, high = drop_interval(
            dense, counts(0.8 - drop, pixels=pixels), Blocks(np.arange(40)), resamples=300, level=0.9
        )
        held += low <= truth <= high
    assert 0.8 <= held / 200 <= 0.97


def test_it_is_the_same_every_time_and_moves_with_the_seed():
    draw = np.random.default_rng(3)
    dense, dynamic = counts(draw.uniform(0.5, 0.9, 50)), counts(draw.uniform(0.5, 0.9, 50))
    blocks = blocks_from_stems([f"a_{number}" for number in range(50)], length=2)
    assert drop_interval(dense, dynamic, blocks) == drop_interval(dense, dynamic, blocks)
    assert drop_interval(dense, dynamic, blocks, seed=1) != drop_interval(dense, dynamic, blocks)
    wide, narrow = drop_interval(dense, dynamic, blocks, level=0.99), drop_interval(dense, dynamic, blocks, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("empty", [0, 1])
def test_blocks_without_labels_are_no_obstacle(empty):
    share = np.full(10, 0.8)
    dense = counts(share)
    parts = [part.copy() for part in (dense.hit, dense.true, dense.called)]
    for part in parts:
        part[: 5 * empty] = 0
    blank = ClassCounts(*parts)
    assert drop_interval(blank, blank, Blocks(np.repeat([0, 1], 5))) == (0.0, 0.0)
