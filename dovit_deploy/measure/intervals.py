"""How sure a measured drop from dense to dynamic is: its interval.

Intervals are percentiles of a paired bootstrap: both answers to an image are drawn together. Frames of a drive are
alike for as long as the same things are in sight, so that they are drawn together, too, in blocks of ten seconds of
recording; drawn one by one they would pretend to be more evidence than they are. Independent images are blocks of
their own. Fewer than eight blocks say too little about others: there is no interval then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.datasets.recording import Moment
from dovit_deploy.measure.metrics import ClassCounts, Hits

BLOCK_SECONDS = 10.0
"""Of recording that are drawn together."""

FEWEST_BLOCKS = 8
"""For an interval: of fewer the bootstrap draws a handful of different sets."""

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95


@dataclass(frozen=True)
class Blocks:
    """Which images are drawn together: `number` (n,), the block of each image, counted from 0 without gaps."""

    number: NDArray[np.int64]
    seconds: float | None = None
    """Of recording in each of them; None: images that are independent of each other."""

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return int(self.number.max()) + 1 if len(self.number) else 0

    @property
    def longest(self) -> int:
        """Images in the longest block."""
        return int(np.bincount(self.number).max())

    @property
    def enough(self) -> bool:
        """Whether they are enough for an interval."""
        return self.count >= FEWEST_BLOCKS

    def of(self, indices: Sequence[int]) -> Blocks:
        """The blocks of these images alone, numbered from 0 again."""
        return Blocks(_renumbered(self.number[list(indices)]), self.seconds)


def blocks_of(images: int, moments: Sequence[Moment] | None, *, seconds: float = BLOCK_SECONDS) -> Blocks:
    """Pieces of `seconds` of recording, counted from the first image of each drive.

    The last piece of a drive, and one from which images are missing, hold less.

    Args:
        images: how many there are.
        moments: when each was recorded; None: they are independent, and each is a block of its own.
        seconds: in a piece.
    """
    if moments is None:
        return Blocks(np.arange(images))
    first: dict[str, float] = {}
    for drive, second in moments:
        first[drive] = min(second, first.get(drive, second))
    # Quotients of frame numbers carry rounding errors: the frame at 10 s must not fall into the piece before.
    pieces = [(drive, math.floor((second - first[drive]) / seconds + 1e-9)) for drive, second in moments]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return Blocks(np.array([numbers[piece] for piece in pieces], dtype=np.int64), seconds)


def _renumbered(number: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(number, return_inverse=True)[1].astype(np.int64)


def miou_drop_interval(
    before: ClassCounts,
    after: ClassCounts,
    blocks: Blocks,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """The interval of the drop in mIoU from `before` to `after`, in points.

    Args:
        before, after: of the same images, (n, K).
        blocks: of these images.
        resamples: sets drawn, each of as many blocks as there are.
        seed: of the draws.
        level: share of the resampled drops that lie in the interval.

    Returns:
        Lower and upper end; None for too few blocks, and where no set that was drawn has a labelled pixel.
    """
    return miou_drop_interval_over_seeds([before], [after], blocks, resamples=resamples, seed=seed, level=level)


def miou_drop_interval_over_seeds(
    before: Sequence[ClassCounts],
    after: Sequence[ClassCounts],
    blocks: Blocks,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """The interval of the drop in mIoU, mean over networks that were trained with several seeds, in points.

    Every set that is drawn holds as many blocks as there are, and as many seeds, both with replacement: what another
    street or another run would change is in the interval.

    Args:
        before, after: of each seed, of the same images, (n, K); the two of a seed belong together.
        blocks: of these images.
        resamples, seed, level: as of `miou_drop_interval`.
    """
    if not blocks.enough:
        return None
    # Sums over blocks come first, and drawing blocks with replacement is counting how often each is drawn: a product of
    # small matrices in place of 2000 sums over images.
    membership = np.equal(np.arange(blocks.count)[:, None], blocks.number[None, :]).astype(np.int64)
    rng, seeds = np.random.default_rng(seed), len(before)
    drawn, of_seed = (_times_drawn(count, resamples, rng) for count in (blocks.count, seeds))
    drops = np.stack(
        [
            one.weighted(membership).weighted(drawn).mious - other.weighted(membership).weighted(drawn).mious
            for one, other in zip(before, after, strict=True)
        ],
        axis=1,
    )
    # A seed that is not drawn must not make a set unknown.
    weighted = np.where(of_seed > 0, of_seed * drops, 0.0)
    return _percentiles(weighted.sum(1) / seeds, level)


def mean_interval(
    values: Sequence[float],
    blocks: Blocks,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """The interval of the mean of one value an image, or of one difference between two runs of each image.

    Args:
        values: (n,).
        blocks: of these images.
        resamples: sets drawn, each of as many blocks as there are.
        seed: of the draws.
        level: share of the resampled means that lie in the interval.

    Returns:
        Lower and upper end; None for too few blocks.
    """
    if not blocks.enough:
        return None
    sums = np.bincount(blocks.number, weights=np.asarray(values, dtype=np.float64))
    images = np.bincount(blocks.number)
    drawn = _times_drawn(blocks.count, resamples, np.random.default_rng(seed))
    return _percentiles((drawn @ sums) / (drawn @ images), level)


def _times_drawn(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(resamples, count): how often each of `count` is in a set of as many, drawn with replacement."""
    return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)


def accuracy_drop_interval(
    before: Hits, after: Hits, *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> tuple[float, float] | None:
    """The interval of the drop in accuracy from `before` to `after`, in points; every image is a block of its own.

    Args:
        before, after: of the same images, (n,).
        resamples: sets drawn, each of n images.
        seed: of the draws.
        level: share of the resampled drops that lie in the interval.

    Returns:
        Lower and upper end; None for too few images.
    """
    if len(before) < FEWEST_BLOCKS:
        return None
    # An image counts 1 where only the first answer is right, -1 where only the second is, else 0. In a set drawn image
    # by image only these three numbers matter, and they are multinomial: no need to draw 50,000 images 2000 times.
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    shares = np.array([lost, won, len(before) - lost - won]) / len(before)
    drawn = np.random.default_rng(seed).multinomial(len(before), shares, size=resamples)
    return _percentiles(100.0 * (drawn[:, 0] - drawn[:, 1]) / len(before), level)


def _percentiles(drops: NDArray[np.float64], level: float) -> tuple[float, float] | None:
    # A set drawn without any labelled pixel has no mIoU.
    drops = drops[~np.isnan(drops)]
    if not len(drops):
        return None
    low, high = np.quantile(drops, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
