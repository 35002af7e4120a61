"""The interval of a drop in mIoU: a paired block bootstrap over the images of a set.

Paired: both answers of an image are drawn together. In blocks: neighbouring frames of a drive are alike, so they are
drawn together, too; drawn one by one they would pretend to be more evidence than they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
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


# An upper confidence bound of a mean of values in [0, 1], without any assumption about their distribution.
#
# Hoeffding and Bentkus, as combined by Angelopoulos et al., "Learn then Test" (2021): the mean of n
# independent values is
# at most E with confidence C when the p-value of "it is larger than E" is at most 1 - C.

STEPS = 60
"""Of bisection: the bound is found to 1e-18."""


def upper_bound(mean: float, count: int, *, confidence: float) -> float:
    """What the true mean is at most, with `confidence`.

    Args:
        mean: of the values seen, in [0, 1].
        count: how many were seen, at least 1.
        confidence: in (0, 1).

    Returns:
        In [mean, 1]; rises with `mean` and `confidence`, falls with `count`.
    """
    low, high = mean, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if p_value(mean, count, limit=middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def p_value(mean: float, count: int, *, limit: float) -> float:
    """Of the hypothesis that the true mean is larger than `limit`."""
    if mean >= limit:
        return 1.0
    if limit >= 1.0:
        return 0.0
    hoeffding = math.exp(-count * _divergence(mean, limit))
    # A mean of exact eighths must not be lifted to the next whole number by rounding.
    bentkus = math.e * _binomial_at_most(math.ceil(count * mean - 1e-9), count, limit)
    return min(1.0, hoeffding, bentkus)


def images_needed(limit: float, *, confidence: float) -> int:
    """The fewest images that can show a mean of at most `limit`: all of them without any difference."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-limit))


def _divergence(mean: float, limit: float) -> float:
    """Kullback-Leibler divergence of two coins."""
    first = mean * math.log(mean / limit) if mean > 0 else 0.0
    return first + (1 - mean) * math.log((1 - mean) / (1 - limit))


def _binomial_at_most(successes: int, count: int, chance: float) -> float:
    """Probability of at most `successes` in `count` draws."""
    if chance <= 0:
        return 1.0
    k = np.arange(min(successes, count) + 1)
    logs = _log_choices(count)[: len(k)] + k * math.log(chance) + (count - k) * math.log1p(-chance)
    return min(1.0, float(np.exp(logs).sum()))


@lru_cache(maxsize=8)
def _log_choices(count: int) -> npt.NDArray[np.float64]:
    """Logarithms of the binomial coefficients (count over 0), ..., (count over count)."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    logs: npt.NDArray[np.float64] = factorials[-1] - factorials - factorials[::-1]
    return logs


# How right a classifier is: top-1 and top-5 accuracy of a set in percent, and how sure a difference is.
#
# Pictures of such a set are drawn independently of each other, so the bootstrap draws single pictures: paired, both
# answers to a picture together.

Hits = NDArray[np.bool_]
"""(n,): the answer to each picture is right."""


def top_hits(ranked: Sequence[Sequence[int]], labels: Sequence[int], *, top: int) -> Hits:
    """Whether each label is among the first `top` ids of its answer, the most probable first."""
    return np.array([label in ids[:top] for ids, label in zip(ranked, labels, strict=True)], dtype=bool)


def accuracy(hits: Hits) -> float:
    """Percent of the pictures."""
    return 100.0 * float(hits.mean())


def accuracy_drop_interval(
    before: Hits, after: Hits, *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> tuple[float, float] | None:
    """Between which points the drop of the accuracy from `before` to `after` lies: percentiles over resampled sets.

    A picture counts 1 where only the first answer is right, -1 where only the second is, else 0. Of a set drawn from
    these, picture by picture, only the three numbers matter, and those are multinomial.

    Args:
        before, after: of the same pictures, (n,).
        resamples: sets drawn, each of n pictures.
        seed: of the draws.
        level: share of the resampled drops that lie in the interval.

    Returns:
        Lower and upper end; None for one picture, which says nothing about others.
    """
    if len(before) < 2:
        return None
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    shares = np.array([lost, won, len(before) - lost - won]) / len(before)
    drawn = np.random.default_rng(seed).multinomial(len(before), shares, size=resamples)
    drops = 100.0 * (drawn[:, 0] - drawn[:, 1]) / len(before)
    low, high = np.quantile(drops, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
