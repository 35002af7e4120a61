"""Spearman's rank correlation, with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL = 2000, 0.95


def ranks(values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """1 for the smallest; equal values share the mean of the ranks they take up together."""
    _, group, size = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    shared: NDArray[np.float64] = (last - (size - 1) / 2)[group]
    return shared


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The linear correlation of both rows' ranks, -1 to 1; NaN where all values of a row are equal."""
    one, other = ranks(first), ranks(second)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else float("nan")


def spearman_interval(
    first: Sequence[float], second: Sequence[float], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Between which values `spearman` lies: percentiles over sets of pairs drawn with replacement.

    The pairs are taken to be independent of each other.
    """
    rng, pairs = np.random.default_rng(seed), np.array([first, second], dtype=np.float64)
    drawn = [pairs[:, rng.integers(0, pairs.shape[1], pairs.shape[1])] for _ in range(resamples)]
    # A set that drew one pair alone has no correlation.
    low, high = np.nanquantile([spearman(*rows) for rows in drawn], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
