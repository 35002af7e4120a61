"""Scores and permutations of Evo-ViT, on one image and on batches; how many patches a ratio chooses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import ValidationError

from dovit_deploy.families.evovit.selection import by_score, class_scores, mixed, ranks, rows, scored_block
from dovit_deploy.families.evovit.spec import TokenSelection, check_selections, selection_of_layer
from dovit_deploy.families.layers import Block

steadily = settings(deadline=None, derandomize=True, max_examples=40)


@steadily
@given(some.integers(1, 40), some.integers(0, 2**16))
def test_ranks_turn_the_order_round(length: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, length, generator=draw)
    tokens = torch.rand(3, length, 5, generator=draw)
    values, order = by_score(scores)
    assert (values.diff() <= 0).all()
    assert torch.equal(order.sort().values, torch.arange(length).expand(3, -1))
    assert torch.equal(rows(rows(tokens, order), ranks(order)), tokens)
    for image in range(3):
        alone_values, alone = by_score(scores[image])
        assert torch.equal(alone, order[image]) and torch.equal(alone_values, values[image])
        assert torch.equal(ranks(alone), ranks(order)[image])
        assert torch.equal(rows(tokens[image], alone), rows(tokens, order)[image])
        # A patch is among the first n of the order exactly if its rank is below n.
        count = length // 2
        assert set(alone[:count].tolist()) == set((ranks(alone) < count).nonzero()[:, 0].tolist())


@steadily
@given(some.sampled_from([1, 2, 4]), some.integers(2, 12), some.integers(0, 2**16))
def test_class_scores_are_the_first_row_of_the_attention(heads: int, tokens: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    query, key = (2 * torch.randn(2, tokens, 8, generator=draw) for _ in range(2))
    by_head = [part.reshape(2, tokens, heads, -1).transpose(1, 2) for part in (query, key)]
    attention = (by_head[0] @ by_head[1].transpose(-2, -1) * (8 // heads) ** -0.5).softmax(-1)
    found = class_scores(query, key, heads)
    assert torch.allclose(found, attention[:, :, 0].sum(1), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.full((2,), float(heads)), atol=1e-5)
    assert torch.allclose(class_scores(query[1], key[1], heads), found[1], atol=1e-6)


def test_a_scored_block_is_the_block() -> None:
    block, tokens = Block(8, 2, 16, 1e-6).eval(), torch.randn(7, 8)
    with torch.no_grad():
        found, scores = scored_block(block, tokens)
        normed = block.norm1(tokens)
        wanted = class_scores(block.attention.query(normed), block.attention.key(normed), 2)
    assert torch.equal(found, block(tokens))
    assert torch.equal(scores, wanted)


def test_a_tradeoff_of_1_forgets() -> None:
    before, now = torch.tensor([0.2, 0.8]), torch.tensor([0.6, 0.4])
    assert mixed(None, now, 0.3) is now
    assert mixed(before, now, 1.0) is now
    assert torch.allclose(mixed(before, now, 0.25), torch.tensor([0.3, 0.7]))
    assert torch.allclose(mixed(before, now, torch.tensor(0.25)), torch.tensor([0.3, 0.7]))


@steadily
@given(some.integers(1, 4000), some.floats(0, 1), some.floats(0, 1))
def test_a_larger_ratio_chooses_no_fewer(patches: int, one: float, other: float) -> None:
    few, many = sorted((one, other))
    counts = [TokenSelection(first=1, last=2, ratio=ratio).chosen(patches) for ratio in (0.0, few, many, 1.0)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, patches)
    assert TokenSelection(first=1, last=2, ratio=0.5).chosen(49) == 24


@pytest.mark.parametrize(("first", "last", "ratio"), [(0, 2, 0.5), (2, 2, 0.5), (1, 2, 1.5), (1, 2, -0.1)])
def test_impossible_selections(first: int, last: int, ratio: float) -> None:
    with pytest.raises(ValidationError):
        TokenSelection(first=first, last=last, ratio=ratio)


def test_selections_follow_one_another() -> None:
    one, two = TokenSelection(first=1, last=3, ratio=0.5), TokenSelection(first=3, last=5, ratio=0.5)
    check_selections((one, two), 5)
    assert [selection_of_layer((one, two), layer) for layer in range(6)] == [None, 0, 0, 1, 1, None]
    for wrong, depth in (((two, one), 5), ((one, one), 5), ((one, two), 4)):
        with pytest.raises(ValueError, match="must follow one another"):
            check_selections(wrong, depth)
