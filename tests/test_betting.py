"""Bets on a mean: right where it can be worked out by hand, and wrong no more often than they say."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.betting import (
    DriftEvidence,
    best_bet,
    largest_bet,
    p_value,
    shown_in_sequence,
    units_needed,
    upper_bound,
)

LIMIT, CONFIDENCE = 0.1, 0.9
Draw = Callable[[np.random.Generator, int], np.ndarray]


def beta(mean: float, spread: float) -> Draw:
    """Values with that mean and standard deviation."""
    size = mean * (1 - mean) / spread**2 - 1
    return lambda generator, count: generator.beta(mean * size, (1 - mean) * size, count)


def mixture(generator: np.random.Generator, count: int) -> np.ndarray:
    """Mostly almost nothing, now and then a third: the mean is 0.1."""
    return np.where(generator.random(count) < 0.3, 1 / 3, 0.0)


# A mean just at the limit, which must not be shown to be below it.
AT_THE_LIMIT: dict[str, Draw] = {
    "all or nothing": lambda generator, count: (generator.random(count) < LIMIT).astype(float),
    "mixture": mixture,
    "narrow": beta(LIMIT, 0.02),
    "wide": beta(LIMIT, 0.15),
}


def shown(draw: Draw, generator: np.random.Generator, *, units: int = 40, searched: int = 20) -> bool:
    """One whole test: the bet from one set, the p-value from another."""
    bet = best_bet(draw(generator, searched), limit=LIMIT)
    return p_value(draw(generator, units), limit=LIMIT, bet=bet) <= 1 - CONFIDENCE


# A fixed number of values.


def test_least_numbers() -> None:
    """Zeros alone: (1 - E)^n; 149 values for 2 % with a confidence of 95 %, and not one less."""
    assert units_needed(0.02, confidence=0.95) == 149
    for count, enough in ((148, False), (149, True)):
        zeros = np.zeros(count)
        bet = best_bet(np.zeros(2), limit=0.02)
        assert bet == largest_bet(0.02)
        assert p_value(zeros, limit=0.02, bet=bet) == pytest.approx(0.98**count)
        assert (p_value(zeros, limit=0.02, bet=bet) <= 0.05) is enough
        assert (upper_bound(zeros, bet=bet, confidence=0.95) <= 0.02) is enough


@pytest.mark.parametrize("limit", [0.01, 0.02, 0.05, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_the_least_number_is_what_the_test_takes(limit: float, count: int) -> None:
    """Also where the confidence is exactly what so many zeros show, and rounding decides whether they do."""
    confidence = 1 - (1 - limit) ** count
    if not 0.5 <= confidence < 1 - 1e-9:
        return
    least = units_needed(limit, confidence=confidence)
    enough = [p_value(np.zeros(n), limit=limit, bet=largest_bet(limit)) <= 1 - confidence for n in (least - 1, least)]
    assert enough == [False, True] and abs(least - count) <= 1


def test_the_largest_bet_draws_a_pixel_of_each_image() -> None:
    """Its p-value is (1 - E)^n over the chance that none of the pixels, one drawn of each image, differs."""
    values = np.array([0.05, 0.0, 0.01, 0.04])
    expected = 0.9**4 / np.prod(1 - values)
    assert p_value(values, limit=0.1, bet=largest_bet(0.1)) == pytest.approx(expected)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.9))
def test_the_best_bet_is_the_best(values: list[float], limit: float) -> None:
    given_values = np.array(values)
    bet = best_bet(given_values, limit=limit)

    def growth(one: float) -> float:
        with np.errstate(divide="ignore"):
            return float(np.sum(np.log(np.maximum(1 + one * (limit - given_values), 0))))

    assert 0 <= bet <= largest_bet(limit)
    others = np.linspace(0, largest_bet(limit), 50)
    assert growth(bet) >= max(map(growth, others)) - 1e-6
    if given_values.mean() >= limit:
        assert bet < 1e-6


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1), st.floats(0.5, 0.99), st.floats(0.01, 0.9))
def test_the_bound_is_where_the_test_turns(values: list[float], part: float, confidence: float, limit: float) -> None:
    given_values, bet = np.array(values), part * largest_bet(limit)
    bound = upper_bound(given_values, bet=bet, confidence=confidence)
    assert given_values.min() <= bound <= 1
    p = p_value(given_values, limit=limit, bet=bet)
    if abs(bound - limit) > 1e-9:
        assert (bound < limit) is (p <= 1 - confidence)
    assert bound <= upper_bound(given_values, bet=bet, confidence=(1 + confidence) / 2) + 1e-12


def test_one_value_of_one_costs_everything_at_the_largest_bet() -> None:
    assert p_value(np.array([1.0, *np.zeros(1000)]), limit=0.1, bet=largest_bet(0.1)) == 1.0


@pytest.mark.parametrize("kind", AT_THE_LIMIT)
def test_a_mean_at_the_limit_is_shown_no_more_often_than_promised(kind: str) -> None:
    generator, rounds = np.random.default_rng(1), 600
    wrong = sum(shown(AT_THE_LIMIT[kind], generator) for _ in range(rounds)) / rounds
    # Three standard errors above what is allowed.
    assert wrong <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / rounds)


def test_a_bet_that_is_too_large_would_be_noticed() -> None:
    """What one value of 1 cannot pay for: the same test is wrong far more often than it says."""
    generator, wrong = np.random.default_rng(1), 0
    for _ in range(600):
        values = AT_THE_LIMIT["all or nothing"](generator, 40)
        wrong += p_value(values, limit=LIMIT, bet=2 * largest_bet(LIMIT)) <= 1 - CONFIDENCE
    assert wrong / 600 > 0.1 + 3 * np.sqrt(0.1 * 0.9 / 600)


def test_it_is_strong_where_values_differ_little() -> None:
    """Half the limit, as images of one kind have: found with a few more units than the least number."""
    generator = np.random.default_rng(2)
    found = sum(shown(beta(LIMIT / 2, 0.03), generator, units=60) for _ in range(100))
    assert units_needed(LIMIT, confidence=CONFIDENCE) == 22 and found >= 95


# A sequence of tests.


def test_the_first_that_fails_ends_the_sequence() -> None:
    assert shown_in_sequence([0.01, 0.05, 0.2, 0.001], confidence=0.95) == 2
    assert shown_in_sequence([0.2, 0.001], confidence=0.95) == 0
    assert shown_in_sequence([], confidence=0.95) == 0


@pytest.mark.parametrize(
    "means",
    [(0.04, 0.08, 0.1, 0.1, 0.1), (0.1, 0.02, 0.1, 0.02, 0.1), (0.05, 0.12, 0.04, 0.13)],
    ids=["rising", "up and down", "above between"],
)
def test_the_last_that_is_shown_breaks_the_limit_no_more_often_than_promised(means: tuple[float, ...]) -> None:
    """The losses of the settings come from the same images, and rise and fall along the sequence."""
    generator, rounds, broken = np.random.default_rng(3), 250, 0
    for _ in range(rounds):
        common = generator.beta(1, 3, (2, 40)) * 4

        def losses(part: int, mean: float, common: np.ndarray = common) -> np.ndarray:
            return np.minimum(mean * common[part], 1)

        p_values = [
            p_value(losses(1, mean), limit=LIMIT, bet=best_bet(losses(0, mean)[:20], limit=LIMIT)) for mean in means
        ]
        count = shown_in_sequence(p_values, confidence=CONFIDENCE)
        broken += count > 0 and means[count - 1] >= LIMIT
    assert broken / rounds <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / rounds)


# A stream.


def alarm(values: np.ndarray, *, limit: float = 0.02, confidence: float = 0.95) -> int | None:
    """How many values it took; None: no alarm."""
    evidence = DriftEvidence(limit)
    for value in values:
        if evidence.add(float(value)) >= 1 / (1 - confidence):
            return evidence.values
    return None


def test_wealth_is_what_was_staked_and_what_is_held() -> None:
    """By hand, start by start: what is staked at the k-th value is multiplied from there on."""
    values, limit = [0.1, 0.0, 0.3], 0.05
    evidence = DriftEvidence(limit)
    assert evidence.wealth == 1
    held = [1 / (1 + np.log(1 + count)) for count in range(4)]
    expected = held[3]
    for start in range(3):
        for power in range(1, 8):
            factors = [1 + 0.5**power / limit * (value - limit) for value in values[start:]]
            expected += (held[start] - held[start + 1]) / 7 * np.prod(factors)
    for value in values:
        evidence.add(value)
    assert evidence.wealth == pytest.approx(expected)
    assert evidence.values == 3


@pytest.mark.parametrize("mean", [0.02, 0.012])
def test_a_stream_in_control_is_let_alone(mean: float) -> None:
    """500 streams: those of which there is ever an alarm are no more than promised."""
    generator, streams = np.random.default_rng(4), 500
    drawn = generator.beta(mean * 20, (1 - mean) * 20, (streams, 100))
    alarms = sum(alarm(values) is not None for values in drawn) / streams
    assert alarms <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / streams)


def test_an_opponent_who_sees_the_wealth_wins_no_more_often() -> None:
    """Each value is 0 or just enough for an alarm, else 1, and its mean E whatever came before."""
    generator, streams, limit, alarms = np.random.default_rng(6), 150, 0.05, 0
    for _ in range(streams):
        evidence = DriftEvidence(limit)
        for _ in range(60):
            enough = (value for value in (0.1, 0.2, 0.5) if copy.deepcopy(evidence).add(value) >= 20)
            high = next(enough, 1.0)
            if evidence.add(high if generator.random() < limit / high else 0.0) >= 20:
                alarms += 1
                break
    assert alarms / streams <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / streams)


def test_money_that_nobody_held_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole stake at every value, as if each were the first: alarms by the dozen."""
    monkeypatch.setattr(DriftEvidence, "_held", staticmethod(lambda values: -float(values)))
    drawn = np.random.default_rng(4).beta(0.4, 19.6, (100, 100))
    assert sum(alarm(values) is not None for values in drawn) > 20


@pytest.mark.parametrize(("before", "mean", "most"), [(0, 0.06, 20), (300, 0.06, 60), (3000, 0.06, 80), (300, 0.2, 20)])
def test_drift_is_found_also_after_a_long_time_in_control(before: int, mean: float, most: int) -> None:
    generator = np.random.default_rng(5)
    calm, after = beta(0.012, 0.012)(generator, before), beta(mean, 0.04)(generator, 400)
    assert before < alarm(np.concatenate([calm, after])) <= before + most


def test_zeros_leave_wealth_between_nothing_and_one() -> None:
    evidence = DriftEvidence(0.02)
    wealths = [evidence.add(0.0) for _ in range(200)]
    assert all(0 < later < earlier < 1 for earlier, later in itertools.pairwise(wealths))
