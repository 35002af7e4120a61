"""How right a classifier is: top-1 and top-5 accuracy of a set in percent, and how sure a difference is.

Pictures of such a set are drawn independently of each other, so the bootstrap draws single pictures: paired, both
answers to a picture together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dovit_deploy.measure.bootstrap import LEVEL, RESAMPLES, SEED

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
