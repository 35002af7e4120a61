"""Evo-ViT on DeiT: select by class attention, run the chosen patches, let the rest wait unchanged and rejoin.

Nothing here depends on the order of patches, so they stay sorted by score; only what reads positions (a decode head,
the decisions that a stage reports) goes back to raster order. Source: YifanXu74/Evo-ViT.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dovit_deploy.families.evovit.selection import by_score, mixed, ranks, rows, scored_block
from dovit_deploy.families.evovit.spec import ClassTokenHead, EvoDeitSpec, PooledHead, Selection
from dovit_deploy.families.heads import decode_head_from_spec
from dovit_deploy.families.layers import Attend, Block, attention, padded, state_at_size, stem_from_spec
from dovit_deploy.families.registry import Family


class Evolved(NamedTuple):
    """What is left when all layers have run."""

    tokens: Tensor
    """(..., E + n, C): extra tokens, then patches in the order of `places`, the last selection's chosen ones first."""
    places: Tensor | None
    """(..., N) int64: raster position of each patch; None: raster order."""
    chosen: tuple[Tensor, ...]
    """Per selection (..., N) int64 of 0 and 1 in raster order: the patch was chosen to run."""


class EvoDeit(nn.Module):
    """Parameters under the names that `VisionTransformer` has, and the way tokens take through them.

    Args:
        spec: the architecture.
        trainable: keep batch norms (of a convolutional stem or an up-sampling head) apart.
    """

    def __init__(self, spec: EvoDeitSpec, *, trainable: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem_from_spec(spec, trainable=trainable)
        self.extra_tokens = nn.Parameter(torch.zeros(spec.extra_tokens, spec.width))
        self.positions = nn.Parameter(torch.zeros(spec.tokens, spec.width))
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.hidden, spec.norm_eps) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)
        self.head = _head_from_spec(spec, trainable=trainable)

    def embed(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (E + N, C): extra tokens first, position embeddings added."""
        patches = self.stem(padded(pixels, self.spec.patch)).flatten(2)[0].transpose(0, 1)
        return torch.cat([self.extra_tokens, patches]) + self.positions

    def evolve(self, tokens: Tensor, selections: tuple[Selection, ...], attend: Attend = attention) -> Evolved:
        """`tokens` (..., E + N, C) through all layers under `selections`."""
        way = _Way(self, tokens, attend)
        for selection in selections:
            way.run(way.layer, selection.first)
            way.select(selection, rejoin=self.spec.rejoin_last or selection.last < self.spec.depth)
        way.run(way.layer, self.spec.depth)
        return Evolved(way.tokens, way.places, tuple(way.chosen))

    def decode(self, evolved: Evolved) -> Tensor:
        """Logits (1, K) of a classifier, (1, K, h, w) of a decode head."""
        tokens, extra = evolved.tokens, self.spec.extra_tokens
        if isinstance(self.spec.head, PooledHead):
            # The mean first, then the norm.
            return self.head(self.norm(tokens[extra:].mean(0, keepdim=True)))  # type: ignore[no-any-return]
        if isinstance(self.spec.head, ClassTokenHead):
            return self.head(self.norm(tokens[:extra]))  # type: ignore[no-any-return]
        return self.head(self.norm(in_raster_order(evolved, extra)))  # type: ignore[no-any-return]


class _Way:
    """Tokens on their way through the layers, with their scores and where they came from."""

    def __init__(self, model: EvoDeit, tokens: Tensor, attend: Attend) -> None:
        self.model, self.attend, self.tokens = model, attend, tokens
        self.extra = model.spec.extra_tokens
        self.layer = 0
        self.scores: Tensor | None = None
        """(..., N) in the order of the patches."""
        self.places: Tensor | None = None
        self.chosen: list[Tensor] = []

    def run(self, first: int, last: int) -> None:
        """Layers `first` to `last` - 1 on all tokens."""
        for layer in range(first, last):
            self.tokens, scores = self._block(layer, self.tokens)
            if self.model.spec.selections:
                self.scores = mixed(self.scores, scores, self.model.spec.tradeoffs[layer])
        self.layer = last

    def select(self, selection: Selection, *, rejoin: bool) -> None:
        """The layers of `selection` on the chosen patches; the rest wait and, with `rejoin`, are joined at the end."""
        assert self.scores is not None
        extra, count = self.extra, selection.chosen(self.scores.shape[-1])
        if count == self.scores.shape[-1]:
            self.chosen.append(torch.ones_like(self.scores, dtype=torch.int64))
            return self.run(selection.first, selection.last)
        scores, order = by_score(self.scores)
        self.places = order if self.places is None else self.places.gather(-1, order)
        self.chosen.append((ranks(self.places) < count).to(torch.int64))
        running = torch.cat([self.tokens[..., :extra, :], rows(self.tokens, extra + order[..., :count])], -2)
        waiting = rows(self.tokens, extra + order[..., count:])
        own = scores[..., :count]
        for layer in range(selection.first, selection.last):
            running, now = self._block(layer, running)
            own = mixed(own, now, self.model.spec.tradeoffs[layer])
        self.scores = torch.cat([own, scores[..., count:]], -1)
        self.tokens = torch.cat([running, waiting], -2) if rejoin else running
        self.layer = selection.last
        return None

    def _block(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after a layer, and the scores of their patches."""
        tokens, scores = scored_block(self.model.blocks[layer], tokens, self.attend)  # type: ignore[arg-type]
        return tokens, scores[..., self.extra :]


def in_raster_order(evolved: Evolved, extra: int) -> Tensor:
    """The patches (..., N, C) put back at their positions."""
    patches = evolved.tokens[..., extra:, :]
    return patches if evolved.places is None else rows(patches, ranks(evolved.places))


class Classifier(nn.Module):
    """One linear layer a row of (E, C), and the mean of what they say: (1, K)."""

    def __init__(self, spec: EvoDeitSpec) -> None:
        super().__init__()
        self.classifier = nn.Linear(spec.width, spec.classes)
        if spec.extra_tokens == 2:
            self.distilled = nn.Linear(spec.width, spec.classes)

    def forward(self, rows: Tensor) -> Tensor:
        if len(rows) == 1:
            return self.classifier(rows)  # type: ignore[no-any-return]
        return (self.classifier(rows[:1]) + self.distilled(rows[1:])) / 2  # type: ignore[no-any-return]


def _head_from_spec(spec: EvoDeitSpec, *, trainable: bool) -> nn.Module:
    if isinstance(spec.head, PooledHead | ClassTokenHead):
        return Classifier(spec)
    return decode_head_from_spec(spec.head, spec.width, spec.classes, spec.grid, trainable=trainable)


class EvoDeitStage(nn.Module):
    """The only stage: `pixels` -> `logits`, `kept` int64, and per selection `keepN` (N,) int64 in raster order."""

    def __init__(self, model: EvoDeit) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        spec = self.model.spec
        evolved = self.model.evolve(self.model.embed(pixels), spec.selections)
        return self.model.decode(evolved), torch.tensor(spec.counts, dtype=torch.int64), *evolved.chosen


class EvoDeitDense(nn.Module):
    """The same weights with nothing selected: `pixels` -> `logits`."""

    def __init__(self, model: EvoDeit) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.decode(self.model.evolve(self.model.embed(pixels), ()))


FAMILY = Family(
    spec=EvoDeitSpec,
    build=EvoDeit,
    stages=lambda model: [EvoDeitStage(model)],
    dense=EvoDeitDense,
    state_at_size=state_at_size,
)
