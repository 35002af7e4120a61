"""Scores of tokens by class attention: how much the class token looks at each, and which are therefore chosen.

Every function takes the tokens of one image (n, C), which is what is exported, or of a batch (B, n, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dovit_deploy.families.layers import Attend, Block, attention


def class_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """The first token's attention to every token, summed over heads: (..., n, C) twice -> (..., n).

    Computed apart from the attention itself, which a runtime may fuse.
    """
    part = query.shape[-1] // heads
    first = query[..., :1, :].reshape(*query.shape[:-2], 1, heads, part) * part**-0.5
    # Multiply and sum and not `@`: this repeats a row of the attention, and counters of MACs do not see it twice.
    products: Tensor = (key.reshape(*key.shape[:-1], heads, part) * first).sum(-1)
    return products.softmax(-2).sum(-1)


def scored_block(block: Block, tokens: Tensor, attend: Attend = attention) -> tuple[Tensor, Tensor]:
    """`tokens` (..., n, C) after `block`, and the `class_scores` (..., n) of its attention."""
    scores: list[Tensor] = []

    def scored(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        scores.append(class_scores(query, key, heads))
        return attend(query, key, value, heads)

    return block(tokens, scored), scores[0]


def mixed(before: Tensor | None, now: Tensor, tradeoff: float | Tensor) -> Tensor:
    """The score so far and this layer's, `tradeoff` parts of it; the first layer's stands alone."""
    # Scores that a trade-off of 1 forgets need never be computed.
    if before is None or (isinstance(tradeoff, float) and tradeoff == 1.0):
        return now
    return (1.0 - tradeoff) * before + tradeoff * now


def by_score(scores: Tensor) -> tuple[Tensor, Tensor]:
    """`scores` (..., N) from high to low, and the places int64 they had."""
    values, places = torch.topk(scores, scores.shape[-1], dim=-1, sorted=True)
    return values, places


def rows(tokens: Tensor, places: Tensor) -> Tensor:
    """Rows `places` (..., m) int64 of `tokens` (..., n, C) -> (..., m, C)."""
    if tokens.dim() == 2:
        return tokens.index_select(0, places)
    return tokens.gather(-2, places[..., None].expand(*places.shape, tokens.shape[-1]))


def ranks(places: Tensor) -> Tensor:
    """The inverse of the permutation `places` (..., N) int64: where each token stands in that order."""
    numbers = torch.arange(places.shape[-1], device=places.device)
    if places.dim() == 1:
        return torch.zeros_like(places).index_copy(0, places, numbers)
    return torch.zeros_like(places).scatter(-1, places, numbers.expand_as(places))
