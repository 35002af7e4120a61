"""Is the mean of numbers in [0, 1] below a limit, or above it? Bets against the contrary, whose winnings are evidence.

A player begins with wealth 1 and stakes a part of it on every number X: it is multiplied by 1 + bet * (limit - X).
Where the mean is above the limit no bet wins on average, whatever the distribution of the numbers and however the bets
are chosen beforehand, so wealth reaches 1 / a with a chance of at most a (Ville's inequality): 1 / wealth is a p-value.
Betting on X - limit instead asks the opposite, of numbers that may go on for ever and depend on each other: as long as
the mean of each, given those before it, is at most the limit, the chance that wealth *ever* reaches 1 / a is at most a.

After Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024); a fixed sequence of
tests as in Angelopoulos et al., "Learn then Test" (2021). docs/decisions/0017 says why these bets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(n,), each in [0, 1]."""

BISECTIONS = 45
"""Halvings of an interval of about 1 in the search for a bet or a bound: it is found to 1e-13."""

STAKES = tuple(2.0**-power for power in range(1, 8))
"""Of a watched stream: the parts of the largest bet among which the wealth is divided. The best of them is at most a
factor of two from the best bet of all."""


# Whether a mean is below a limit: a fixed number of independent values.


def units_needed(limit: float, *, confidence: float) -> int:
    """The fewest values that can show a mean of at most `limit`: as many as it takes when each of them is 0.

    No test needs fewer: values of 0 and 1 with a mean just above the limit are all 0 with the chance (1 - limit)^n.
    """
    about = math.ceil(math.log(1 - confidence) / math.log1p(-limit))
    # Where the quotient is a whole number, rounding decides between it and its neighbours: the test itself is asked.
    return next(count for count in range(max(1, about - 1), about + 3) if _zeros_show(count, limit, confidence))


def _zeros_show(count: int, limit: float, confidence: float) -> bool:
    """So many values of 0 are enough."""
    return p_value(np.zeros(count), limit=limit, bet=largest_bet(limit)) <= 1 - confidence


def largest_bet(limit: float) -> float:
    """The bet on numbers below `limit` that a number of 1 takes all wealth from."""
    return 1.0 / (1.0 - limit)


def best_bet(values: Values, *, limit: float) -> float:
    """The bet that would have grown wealth the most on `values`, for later and independent ones of the same kind.

    Returns:
        0 where their mean is not below `limit`, at most `largest_bet(limit)`.
    """
    low, high = 0.0, largest_bet(limit)
    gains = limit - values
    # The slope of the logarithm of wealth falls as the bet rises, so that its zero can be bisected.
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float(np.sum(gains / (1.0 + middle * gains))) > 0:
            low = middle
        else:
            high = middle
    # Exactly the largest: without any loss nothing less gives the smallest possible p-value.
    largest = largest_bet(limit)
    return largest if largest - low < 1e-10 * largest else low if low > 1e-10 else 0.0


def p_value(values: Values, *, limit: float, bet: float) -> float:
    """The p-value of the hypothesis that the true mean of `values` is larger than `limit`.

    Args:
        values: independent of each other and of `bet`, in an order that does not depend on them.
        limit: in (0, 1).
        bet: from 0 to `largest_bet(limit)`.
    """
    factors = 1.0 + bet * (limit - values)
    # The most that the wealth ever was counts: a player may stop while ahead, and the inequality is about that.
    wealth = np.multiply.accumulate(np.concatenate([[1.0], np.maximum(factors, 0.0)]))
    return float(1.0 / wealth.max())


def upper_bound(values: Values, *, bet: float, confidence: float) -> float:
    """The largest value that the true mean of `values` can have, with `confidence`; the limits that `p_value` rejects.

    Args:
        values, bet: as of `p_value`.
        confidence: in (0, 1).
    """
    # For smaller limits the bet is the largest that is allowed there; so the p-value falls as the limit rises. It stays
    # away from 1, below which any bet is allowed.
    low, high = 0.0, 1.0 - 2.0**-BISECTIONS
    if p_value(values, limit=high, bet=bet) > 1 - confidence:
        return 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if p_value(values, limit=middle, bet=min(bet, largest_bet(middle))) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def shown_in_sequence(p_values: Iterable[float], *, confidence: float) -> int:
    """How many hypotheses of a sequence, fixed beforehand, are rejected: those before the first that is not.

    With `confidence` none of them is true, however many there are and in whatever order their truths come: a wrong
    rejection takes that the first true one is rejected.
    """
    return sum(1 for _ in itertools.takewhile(lambda value: value <= 1 - confidence, p_values))


# Whether a mean is above a limit: values that come one after another, without end.


class DriftEvidence:
    """Wealth of bets that the values of a stream are above `limit` on average; begins with 1.

    A part of it is staked at the first value, further parts later, so that what begins to be true after a thousand
    values is found, too; each part is divided among a few bets. All of it is fixed beforehand, and nothing is borrowed:
    with the values' conditional means at most `limit` wealth ever reaches 1 / a with a chance of at most a.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.values = 0
        """How many were seen."""
        self._bets = np.array(STAKES) / limit
        self._staked = np.zeros(len(STAKES))

    def add(self, value: float) -> float:
        """Take the next value, in [0, 1]; returns the wealth after it."""
        share = (self._held(self.values) - self._held(self.values + 1)) / len(self._bets)
        self._staked = (self._staked + share) * (1.0 + self._bets * (value - self.limit))
        self.values += 1
        return self.wealth

    @property
    def wealth(self) -> float:
        """What is staked and what is held."""
        return float(self._staked.sum() + self._held(self.values))

    @staticmethod
    def _held(values: int) -> float:
        """The part that is not staked yet after so many values: it falls to 0, but more slowly than any power."""
        return 1.0 / (1.0 + math.log1p(values))
