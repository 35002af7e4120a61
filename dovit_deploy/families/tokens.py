"""Token passing as pure functions: which tokens run is decided elsewhere and carried out here on indices.

Everywhere `tokens` is (E + N, C): E extra tokens (class, distillation) first, then N patches in raster order.
No function sorts and none has a data-dependent output shape, so each exports to standard operators with static
shapes (docs/architecture.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (kept,) int64 of `tokens` (E + N, C) -> (kept, C)."""
    return tokens.index_select(0, index)


def put_back(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`tokens` with rows `index` replaced by `values` (kept, C); stopped tokens keep their value."""
    return tokens.index_copy(0, index, values)


def partition(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Stable order of a 0/1 mask: kept positions in raster order, then the rest in raster order.

    Args:
        keep: (E + N,) int64 of 0 and 1.

    Returns:
        `order` (E + N,) int64, a permutation, and `count` () int64, how many of its entries are kept.

    A cumulative sum gives each token its index in the order, which is exact and, unlike a sort, cannot be unstable.
    """
    count = keep.sum()
    # How many kept tokens stand up to and with this one, less itself; the rest follow behind all kept ones.
    index_kept = keep.cumsum(0) - 1
    index_rest = count + (1 - keep).cumsum(0) - 1
    index = torch.where(keep > 0, index_kept, index_rest)
    order = torch.zeros_like(index).index_copy(0, index, torch.arange(keep.shape[0], device=keep.device))
    return order, count


def scatter_from(index: Tensor, values: Tensor, length: int, fill: float) -> Tensor:
    """A vector of `length` that is `fill` except at `index` (n,), where it is `values` (n,)."""
    return torch.full((length,), fill, dtype=values.dtype, device=values.device).index_copy(0, index, values)


def aggregate_limit(rate: float, total: int) -> int:
    """The largest number of stopped tokens that does *not* yet change the class token.

    The rule `stopped / total > rate` is evaluated here in double precision, so that the graph compares integers.
    """
    limit = math.floor(rate * total)
    # The product may be off by one rounding: 0.29 * 100 is 28.999..., which is floored to 28.
    while limit + 1 <= total and not (limit + 1) / total > rate:
        limit += 1
    while limit > 0 and limit / total > rate:
        limit -= 1
    return limit


def aggregate(tokens: Tensor, index: Tensor, limit: int) -> Tensor:
    """The class token that enters the next stage, (1, C): half itself, half the mean of all stopped tokens.

    Args:
        tokens: (E + N, C); stopped tokens hold the value they had when they stopped.
        index: (kept,) int64, the running tokens, extra tokens included.
        limit: from `aggregate_limit`; up to that many stopped tokens the class token stays as it is.

    The mean runs over *all* tokens stopped so far, so it fires again at later stages (families.md, DoViT 4).
    """
    stopped = torch.ones(tokens.shape[0], dtype=torch.int64, device=tokens.device).index_fill(0, index, 0)
    count = stopped.sum()
    # `mv` and not `@`: this sum is no work of the network, and counters of MACs do not see it.
    mean = torch.mv(tokens.T, stopped.to(tokens.dtype)) / count.clamp(min=1).to(tokens.dtype)
    own = tokens[:1]
    # With nothing stopped the mean is 0 / 1, and not used.
    return torch.where(count > limit, 0.5 * (mean + own), own)
