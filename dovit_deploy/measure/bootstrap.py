"""The interval of a drop in mIoU: a paired block bootstrap over the images of a set.

Paired: both answers of an image are drawn together. In blocks: neighbouring frames of a drive are alike, so they are
drawn together, too; drawn one by one they would pretend to be more evidence than they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.measure.metrics import ClassCounts

BLOCK = 10
"""Neighbouring images drawn together, at most."""

FEWEST_BLOCKS = 5
"""Smaller sets are cut into shorter blocks."""

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95


@dataclass(frozen=True)
class Blocks:
    """Which images are drawn together: `number` (n,), the block of each image, 0, 1, ... in the order of the images."""

    number: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return int(self.number[-1]) + 1 if len(self.number) else 0

    @property
    def longest(self) -> int:
        """Images in the longest block."""
        return int(np.bincount(self.number).max())


def blocks_from_stems(stems: Sequence[str], *, length: int = BLOCK) -> Blocks:
    """Blocks of at most `length` neighbours of one drive: what stands before the last "_" of a stem names the drive."""
    length = max(1, min(length, len(stems) // FEWEST_BLOCKS))
    numbers: list[int] = []
    block = -1
    for _, drive in itertools.groupby(stems, key=drive_from_stem):
        for place, _ in enumerate(drive):
            block += place % length == 0
            numbers.append(block)
    return Blocks(np.array(numbers, dtype=np.int64))


def drive_from_stem(stem: str) -> str:
    """ "0016E5_07959" -> "0016E5"; the whole set is one drive where names have no "_"."""
    return stem.rpartition("_")[0]


def drop_interval(
    before: ClassCounts,
    after: ClassCounts,
    blocks: Blocks,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """Between which points of mIoU the drop from `before` to `after` lies: percentiles over resampled sets.

    Args:
        before, after: of the same images, (n, K).
        blocks: of these images.
        resamples: sets drawn, each of as many blocks as there are.
        seed: of the draws.
        level: share of the resampled drops that lie in the interval.

    Returns:
        Lower and upper end; None when there is one block only, which says nothing about others.
    """
    if blocks.count < 2:
        return None
    membership = np.equal(np.arange(blocks.count)[:, None], blocks.number[None, :]).astype(np.int64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(blocks.count, np.full(blocks.count, 1.0 / blocks.count), size=resamples)
    drops = before.weighted(membership).weighted(drawn).mious - after.weighted(membership).weighted(drawn).mious
    # A set drawn without any labelled pixel has no mIoU.
    drops = drops[~np.isnan(drops)]
    if not len(drops):
        return None
    low, high = np.quantile(drops, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
