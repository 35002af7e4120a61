"""Which patches run: scores by class attention, the choice of the highest, and how tokens pass through the layers.

Every function takes the tokens of one image (n, C), which is what is exported, or of a batch (B, n, C). Chosen patches
are not put back between selections: they stay sorted by score, which no layer notices, and `order` remembers where each
came from. Only what reads positions goes back to raster order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dovit_deploy.families.evovit.spec import TokenSelection
from dovit_deploy.families.layers import Attend, Block, attention


class SelectiveRun(ABC):
    """The tokens of one image or a batch on their way through the layers, with their scores and their order.

    A network says what a layer computes, and what becomes of the patches that are not chosen.
    """

    def __init__(self, tokens: Tensor, *, extra: int) -> None:
        self.extra = extra
        self.tokens = tokens
        """(..., E + n, C): extra tokens, then patches in the order of `order`."""
        self.layer = 0
        """The next to run."""
        self.scores: Tensor | None = None
        """(..., N) in the order of the patches; None before the first layer."""
        self.order: Tensor | None = None
        """(..., N) int64: raster position of each patch on the present grid; None: raster order."""
        self.chosen: list[Tensor] = []
        """Per selection (..., N) int64 of 0 and 1 in raster order: the patch was chosen to run."""

    def run_until(self, last: int) -> None:
        """The layers before `last` on all tokens."""
        for layer in range(self.layer, last):
            self.tokens, self.scores = self.run_layer(layer, self.tokens, self.scores)
        self.layer = last

    def select(self, selection: TokenSelection) -> None:
        """The layers before `selection` on all tokens, then its own on the patches of highest score."""
        self.run_until(selection.first)
        assert self.scores is not None, "a selection is never before the first layer"
        patches = self.scores.shape[-1]
        count = selection.chosen(patches)
        # Nothing waits: no order changes, and no sort is exported.
        if count == patches:
            self.chosen.append(torch.ones_like(self.scores, dtype=torch.int64))
            self.run_until(selection.last)
            return
        scores, order = by_score(self.scores)
        # The new order is of patches that are in an order already.
        self.order = order if self.order is None else self.order.gather(-1, order)
        # Reported in raster order, as integers: graphs have no boolean outputs.
        self.chosen.append((ranks(self.order) < count).to(torch.int64))
        chosen, rest = (rows(self.tokens, self.extra + part) for part in (order[..., :count], order[..., count:]))
        self.tokens, self.scores = self.run_chosen(selection, chosen, rest, scores)
        self.layer = selection.last

    @abstractmethod
    def run_layer(self, layer: int, tokens: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """One layer on all of `tokens`: what becomes of them and of the `scores` of their patches."""

    @abstractmethod
    def run_chosen(
        self, selection: TokenSelection, chosen: Tensor, rest: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The layers of `selection` on the extra tokens and the `chosen` patches, with the `rest` joined in the end.

        `scores` (..., N) are those of both, the chosen ones first; so are the tokens and scores that it gives.
        """


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
    """`scores` (..., N) from high to low, and the order int64: which patch each one is."""
    # The top N of N: ONNX has no other way to sort.
    values, order = torch.topk(scores, scores.shape[-1], dim=-1, sorted=True)
    return values, order


def rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (..., m) int64 of `tokens` (..., n, C) -> (..., m, C)."""
    if tokens.dim() == 2:
        return tokens.index_select(0, index)
    return tokens.gather(-2, index[..., None].expand(*index.shape, tokens.shape[-1]))


def ranks(order: Tensor) -> Tensor:
    """The inverse of the permutation `order` (..., N) int64: at which rank each token stands."""
    numbers = torch.arange(order.shape[-1], device=order.device)
    # Each index occurs once, so that it does not matter in which order a runtime writes.
    if order.dim() == 1:
        return torch.zeros_like(order).index_copy(0, order, numbers)
    return torch.zeros_like(order).scatter(-1, order, numbers.expand_as(order))
