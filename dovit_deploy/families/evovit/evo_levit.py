"""Evo-ViT on LeViT: the patches not chosen are merged into one representative, whose changes they all receive.

Source: YifanXu74/Evo-ViT, without its module globals: scores and order travel beside the tokens, the order as integers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dovit_deploy.families.evovit.levit import LevitAttention, LevitDown, LevitHead, LevitLayer, LevitStem
from dovit_deploy.families.evovit.selection import SelectiveRun, mixed, ranks, rows
from dovit_deploy.families.evovit.spec import EvoLevitSpec, TokenSelection
from dovit_deploy.families.folding import State
from dovit_deploy.families.layers import resized_positions
from dovit_deploy.families.registry import Family
from dovit_deploy.families.stages import ImageOutput


class EvoLevit(nn.Module):
    """The parameters of the network of `spec`, and how tokens pass through them.

    Args:
        spec: the architecture.
        trainable: keep batch norms apart; otherwise they are folded into their projections.
    """

    def __init__(self, spec: EvoLevitSpec, *, trainable: bool = False) -> None:
        super().__init__()
        self.spec = spec
        learned = spec.tradeoff is None
        first, last = spec.stages[0], spec.stages[-1]
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
        self.head = LevitHead(last.width, spec.classes, distilled=spec.distilled, trainable=trainable)

    def embed(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1 + N, C): class token first, position embeddings added."""
        patches = self.stem(pixels).flatten(2)[0].transpose(0, 1)
        return torch.cat([self.class_token, patches]) + self.positions

    def run(self, tokens: Tensor, selections: tuple[TokenSelection, ...]) -> LevitRun:
        """`tokens` (1 + N, C) through all stages under `selections`, to (1 + N', C')."""
        run = LevitRun(self, tokens)
        for stage, (first, last) in enumerate(self.spec.stage_layers):
            if stage:
                run.subsample(cast("LevitDown", self.downs[stage - 1]))
            # No selection crosses a stage.
            for selection in selections:
                if first <= selection.first < last:
                    run.select(selection)
            run.run_until(last)
        return run

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits (1, K) of the mean of the patches, whose order does not matter."""
        return self.head(tokens[1:].mean(0, keepdim=True))  # type: ignore[no-any-return]

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        run = self.run(self.embed(pixels), () if dense else self.spec.selections)
        return ImageOutput((self.decode(run.tokens),), tuple(run.chosen))


class LevitRun(SelectiveRun):
    """One image's tokens on their way through LeViT's stages: a representative stands for the rest of a selection."""

    def __init__(self, model: EvoLevit, tokens: Tensor) -> None:
        super().__init__(tokens, extra=1)
        self.model = model

    def run_layer(self, layer: int, tokens: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        part = self._layer(layer)
        # Scores are of patches: the class token's attention to itself is left out.
        added, now = part.attention(tokens, tokens)
        tokens = tokens + added
        return tokens + part.mlp(tokens), mixed(scores, now[1:], self._tradeoff(part.attention))

    def run_chosen(
        self, selection: TokenSelection, chosen: Tensor, rest: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, weights = len(chosen), scores[len(chosen) :]
        # `mv` and not `@`: this mean is no work of the network, and counters of MACs do not see it.
        merged = torch.mv(rest.T, weights / weights.sum())[None]
        running = torch.cat([self.tokens[:1], chosen, merged])
        # The source takes a single token left over for a token of its own, and goes on scoring it.
        scored = count + 1 if len(rest) == 1 else count
        own, change = scores[:scored], torch.zeros_like(merged)
        for layer in range(selection.first, selection.last):
            part = self._layer(layer)
            added, now = part.attention(running, running)
            own = mixed(own, now[1 : 1 + scored], self._tradeoff(part.attention))
            running, change = running + added, change + added[-1:]
            added = part.mlp(running)
            running, change = running + added, change + added[-1:]
        # The representative itself is dropped; what it was changed by, its patches receive.
        return torch.cat([running[:-1], rest + change]), torch.cat([own, scores[scored:]])

    def subsample(self, down: LevitDown) -> None:
        """Back to raster order, then to the next stage's grid; the sum of all scores stays what it was."""
        assert self.scores is not None, "every stage has a layer"
        total = self.scores.sum()
        if self.order is not None:
            # The next grid is every second row and column of this one.
            back = ranks(self.order)
            self.scores = self.scores.index_select(0, back)
            self.tokens = torch.cat([self.tokens[:1], rows(self.tokens, 1 + back)])
            self.order = None
        self.tokens, scores = down(self.tokens)
        kept = mixed(down.thinned(self.scores), down.thinned(scores), self._tradeoff(down.attention))
        self.scores = kept * (total / kept.sum())

    def _layer(self, number: int) -> LevitLayer:
        return cast("LevitLayer", self.model.layers[number])

    def _tradeoff(self, part: LevitAttention) -> float | Tensor:
        fixed = self.model.spec.tradeoff
        return torch.sigmoid(part.tradeoff) if fixed is None else fixed


def state_at_size(state: State, spec: EvoLevitSpec, target: EvoLevitSpec) -> State:
    """The position embeddings of every grid resized bilinearly, as the source does it for DeiT; the rest as it is."""
    # Name of a table -> the stage whose grid it belongs to: a subsampling adds positions before it thins the grid.
    tables = {"positions": 0, **{f"downs.{number}.positions": number for number in range(len(spec.subsamples))}}
    resized = {
        name: resized_positions(state[name], 1, spec.stage_grids[stage], target.stage_grids[stage], "bilinear")
        for name, stage in tables.items()
    }
    return {**state, **resized}


FAMILY = Family(build=EvoLevit, resized=state_at_size)
