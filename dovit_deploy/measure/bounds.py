"""An upper confidence bound of a mean of values in [0, 1], without any assumption about their distribution.

Hoeffding and Bentkus, as combined by Angelopoulos et al., "Learn then Test" (2021): the mean of n independent values is
at most E with confidence C when the p-value of "it is larger than E" is at most 1 - C.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

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
