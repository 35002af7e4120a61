"""Token passing: properties of the pure functions, against sets, sorting and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from dovit_deploy.families.tokens import aggregate, aggregate_limit, partition, put_back, scatter_from, take

quickly = settings(max_examples=60, derandomize=True, deadline=None)
masks = some.lists(some.booleans(), min_size=1, max_size=60)


def tokens_of(count: int, width: int = 3) -> Tensor:
    """(count, width), all entries different."""
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width)


@quickly
@given(masks)
def test_what_is_taken_and_put_back_changes_nothing(mask: list[bool]) -> None:
    tokens = tokens_of(len(mask))
    index = torch.tensor([position for position, kept in enumerate(mask) if kept], dtype=torch.int64)
    assert torch.equal(put_back(tokens, index, take(tokens, index)), tokens)


@quickly
@given(masks)
def test_put_back_replaces_its_rows_and_no_others(mask: list[bool]) -> None:
    tokens = tokens_of(len(mask))
    index = torch.tensor([position for position, kept in enumerate(mask) if kept], dtype=torch.int64)
    result = put_back(tokens, index, -1.0 - take(tokens, index))
    for position, kept in enumerate(mask):
        assert torch.equal(result[position], -1.0 - tokens[position] if kept else tokens[position])
    assert torch.equal(tokens, tokens_of(len(mask))), "the argument was changed in position"


@quickly
@given(masks)
def test_partition_is_the_stable_sort(mask: list[bool]) -> None:
    order, count = partition(torch.tensor(mask, dtype=torch.int64))
    assert order.tolist() == sorted(range(len(mask)), key=lambda position: not mask[position])
    assert order.dtype == count.dtype == torch.int64
    assert count.shape == ()
    assert int(count) == sum(mask)


def test_partition_of_many_tokens_is_stable() -> None:
    # Sorts of short rows may be stable by accident.
    mask = (torch.arange(5000) * 7919 % 13 < 6).to(torch.int64)
    order, count = partition(mask)
    assert order.tolist() == sorted(range(5000), key=lambda position: not mask[position])
    assert int(count) == int(mask.sum())


def test_scatter_from_fills_what_it_is_not_given() -> None:
    result = scatter_from(torch.tensor([4, 1]), torch.tensor([0.5, 0.25]), 6, float("nan"))
    assert result[[1, 4]].tolist() == [0.25, 0.5]
    assert result[[0, 2, 3, 5]].isnan().all()
    nothing = torch.zeros(0, dtype=torch.int64)
    assert scatter_from(nothing, nothing, 3, -1).tolist() == [-1, -1, -1]


def test_aggregate_limit_at_the_published_rate_is_exact() -> None:
    for total in range(1, 2001):
        limit = aggregate_limit(0.1, total)
        assert not Fraction(limit, total) > Fraction(1, 10)
        assert Fraction(limit + 1, total) > Fraction(1, 10)


@quickly
@given(some.floats(0.0, 0.99), some.integers(1, 2000))
def test_aggregate_limit_is_where_double_precision_turns(rate: float, total: int) -> None:
    limit = aggregate_limit(rate, total)
    assert [count / total > rate for count in range(total + 1)] == [count > limit for count in range(total + 1)]


@pytest.mark.parametrize("total", [10, 20, 50])
def test_aggregate_changes_nothing_up_to_a_tenth(total: int) -> None:
    tokens = tokens_of(total)
    limit = aggregate_limit(0.1, total)
    for stopped in (0, 1, total // 10):
        index = torch.tensor([0, *range(1 + stopped, total)])
        assert torch.equal(aggregate(tokens, index, limit), tokens[:1])
    index = torch.tensor([0, *range(2 + total // 10, total)])
    assert not torch.equal(aggregate(tokens, index, limit), tokens[:1])


@quickly
@given(some.lists(some.booleans(), min_size=12, max_size=40))
def test_aggregate_is_half_the_mean_of_all_that_stopped(mask: list[bool]) -> None:
    tokens = tokens_of(1 + len(mask))
    index = torch.tensor([0, *(1 + position for position, kept in enumerate(mask) if kept)])
    stopped = [tokens[1 + position].tolist() for position, kept in enumerate(mask) if not kept]
    result = aggregate(tokens, index, aggregate_limit(0.1, len(tokens)))
    assert result.shape == (1, tokens.shape[1])
    if 10 * len(stopped) > len(tokens):
        means = [sum(column) / len(stopped) for column in zip(*stopped, strict=True)]
        own = tokens[0].tolist()
        assert result[0].tolist() == pytest.approx(
            [0.5 * (mean + value) for mean, value in zip(means, own, strict=True)]
        )
    else:
        assert torch.equal(result, tokens[:1])


def test_aggregate_when_every_patch_stopped() -> None:
    tokens = tokens_of(5)
    result = aggregate(tokens, torch.tensor([0]), aggregate_limit(0.1, 5))
    assert torch.allclose(result[0], 0.5 * (tokens[1:].mean(0) + tokens[0]))


def test_aggregate_of_nothing_is_finite() -> None:
    tokens = tokens_of(5)
    assert torch.equal(aggregate(tokens, torch.arange(5), aggregate_limit(0.0, 5)), tokens[:1])


def test_nothing_stopped_trains_without_nan() -> None:
    # The mean of nothing is not used, but its derivative would be.
    tokens = tokens_of(5).requires_grad_()
    result = aggregate(tokens, torch.arange(5), aggregate_limit(0.1, 5))
    (slope,) = torch.autograd.grad(result.sum(), tokens)
    assert slope.tolist() == [[1.0] * 3] + [[0.0] * 3] * 4


def test_a_distillation_token_is_not_counted_as_stopped() -> None:
    tokens = tokens_of(12)
    index = torch.tensor([0, 1, *range(5, 12)])
    result = aggregate(tokens, index, aggregate_limit(0.1, 12))
    assert torch.allclose(result[0], 0.5 * (tokens[2:5].mean(0) + tokens[0]))
