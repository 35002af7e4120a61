"""Evo-ViT on LeViT: the patches not chosen are merged into one representative, whose changes they all receive.

Source: YifanXu74/Evo-ViT, without its module globals: scores and places travel beside the tokens, places as integers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dovit_deploy.families.evovit.levit import LevitAttention, LevitDown, LevitHead, LevitLayer, LevitStem
from dovit_deploy.families.evovit.selection import by_score, mixed, ranks, rows
from dovit_deploy.families.evovit.spec import EvoLevitSpec, Selection
from dovit_deploy.families.layers import resized_positions
from dovit_deploy.families.registry import Family, State


class EvoLevit(nn.Module):
    """Parameters of the network of `spec`; `evolve` says in which order its parts run.

    Args:
        spec: the architecture.
        trainable: keep batch norms apart; otherwise they are folded into their projections.
    """

    def __init__(self, spec: EvoLevitSpec, *, trainable: bool = False) -> None:
        super().__init__()
        self.spec = spec
        learned = spec.tradeoff is None
        first = spec.stages[0]
        self.stem = LevitStem(first.width, trainable=trainable)
        self.class_token = nn.Parameter(torch.zeros(1, first.width))
        self.positions = nn.Parameter(torch.zeros(spec.tokens, first.width))
        self.layers = nn.ModuleList(
            LevitLayer(stage, learned=learned, trainable=trainable) for stage in spec.stages for _ in range(stage.depth)
        )
        self.downs = nn.ModuleList(
            LevitDown(subsample, before.width, after.width, grid, learned=learned, trainable=trainable)
            for subsample, before, after, grid in zip(
                spec.subsamples, spec.stages[:-1], spec.stages[1:], spec.stage_grids[:-1], strict=True
            )
        )
        last = spec.stages[-1]
        self.head = LevitHead(last.width, spec.classes, distilled=spec.distilled, trainable=trainable)

    def embed(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1 + N, C): class token first, position embeddings added."""
        patches = self.stem(pixels).flatten(2)[0].transpose(0, 1)
        return torch.cat([self.class_token, patches]) + self.positions

    def evolve(self, tokens: Tensor, selections: tuple[Selection, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`tokens` (1 + N, C) through all stages under `selections`.

        Returns:
            The last stage's tokens (1 + N', C'), patches in any order, and per selection (n,) int64 of 0 and 1 in
            raster order of its own grid: the patch was chosen to run.
        """
        way = _Way(self, tokens)
        for stage, (first, last) in enumerate(self.spec.stage_layers):
            if stage:
                way.subsample(cast("LevitDown", self.downs[stage - 1]))
            for selection in (one for one in selections if first <= one.first < last):
                way.run(way.layer, selection.first)
                way.select(selection)
            way.run(way.layer, last)
        return way.tokens, tuple(way.chosen)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits (1, K) of the mean of the patches."""
        return self.head(tokens[1:].mean(0, keepdim=True))  # type: ignore[no-any-return]


class _Way:
    """Tokens on their way through the stages, with their scores and where on the grid they came from."""

    def __init__(self, model: EvoLevit, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.layer = 0
        self.scores: Tensor | None = None
        """(n,) in the order of the patches."""
        self.places: Tensor | None = None
        """(n,) int64: raster position of each patch on the present grid; None: raster order."""
        self.chosen: list[Tensor] = []

    def run(self, first: int, last: int) -> None:
        """Layers `first` to `last` - 1 on all tokens."""
        for layer in range(first, last):
            part = self._layer(layer)
            raw, scores = part.attention(self.tokens, self.tokens)
            self.scores = mixed(self.scores, scores[1:], self._tradeoff(part.attention))
            self.tokens = self.tokens + raw
            self.tokens = self.tokens + part.mlp(self.tokens)
        self.layer = last

    def select(self, selection: Selection) -> None:
        """The layers of `selection` on the chosen patches and a representative of the rest, then all together."""
        assert self.scores is not None
        whole = self.scores.shape[0]
        count = selection.chosen(whole)
        if count == whole:
            self.chosen.append(torch.ones_like(self.scores, dtype=torch.int64))
            return self.run(selection.first, selection.last)
        scores, order = by_score(self.scores)
        self.places = order if self.places is None else self.places.index_select(0, order)
        self.chosen.append((ranks(self.places) < count).to(torch.int64))
        rest, weights = rows(self.tokens, 1 + order[count:]), scores[count:]
        # `mv` and not `@`: this mean is no work of the network, and counters of MACs do not see it.
        merged = torch.mv(rest.T, weights / weights.sum())[None]
        running = torch.cat([self.tokens[:1], rows(self.tokens, 1 + order[:count]), merged])
        # The source takes a single token left over for a token of its own, and goes on scoring it.
        scored = count + 1 if whole - count == 1 else count
        own, change = scores[:scored], torch.zeros_like(merged)
        for layer in range(selection.first, selection.last):
            part = self._layer(layer)
            raw, now = part.attention(running, running)
            own = mixed(own, now[1 : 1 + scored], self._tradeoff(part.attention))
            running, change = running + raw, change + raw[-1:]
            raw = part.mlp(running)
            running, change = running + raw, change + raw[-1:]
        self.scores = torch.cat([own, scores[scored:]])
        self.tokens = torch.cat([running[:-1], rest + change])
        self.layer = selection.last
        return None

    def subsample(self, down: LevitDown) -> None:
        """Back to raster order, then to the next stage's grid; the sum of all scores stays what it was."""
        assert self.scores is not None
        total = self.scores.sum()
        if self.places is not None:
            back = ranks(self.places)
            self.scores = self.scores.index_select(0, back)
            self.tokens = torch.cat([self.tokens[:1], rows(self.tokens, 1 + back)])
            self.places = None
        self.tokens, scores = down(self.tokens)
        kept = mixed(down.thinned(self.scores), down.thinned(scores), self._tradeoff(down.attention))
        self.scores = kept * (total / kept.sum())

    def _layer(self, number: int) -> LevitLayer:
        return cast("LevitLayer", self.model.layers[number])

    def _tradeoff(self, part: LevitAttention) -> float | Tensor:
        fixed = self.model.spec.tradeoff
        return torch.sigmoid(part.tradeoff) if fixed is None else fixed


class EvoLevitStage(nn.Module):
    """The only stage: `pixels` -> `logits` (1, K), `kept` int64, per selection `keepN` (n,) int64 in raster order."""

    def __init__(self, model: EvoLevit) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        spec = self.model.spec
        tokens, chosen = self.model.evolve(self.model.embed(pixels), spec.selections)
        return self.model.decode(tokens), torch.tensor(spec.counts, dtype=torch.int64), *chosen


class EvoLevitDense(nn.Module):
    """The same weights with nothing selected: `pixels` -> `logits`."""

    def __init__(self, model: EvoLevit) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.decode(self.model.evolve(self.model.embed(pixels), ())[0])


def state_at_size(state: State, spec: EvoLevitSpec, target: EvoLevitSpec) -> State:
    """The position embeddings of every grid resized bilinearly, as the source does it for DeiT; the rest as it is."""
    tables = {"positions": 0, **{f"downs.{number}.positions": number for number in range(len(spec.subsamples))}}
    resized = {
        name: resized_positions(state[name], 1, spec.stage_grids[stage], target.stage_grids[stage], "bilinear")
        for name, stage in tables.items()
    }
    return {**state, **resized}


FAMILY = Family(
    spec=EvoLevitSpec,
    build=EvoLevit,
    stages=lambda model: [EvoLevitStage(model)],
    dense=EvoLevitDense,
    state_at_size=state_at_size,
)
