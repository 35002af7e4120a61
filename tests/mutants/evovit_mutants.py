"""Misreadings of Evo-ViT: scores, choices, what waits, the representative, the way back to raster order, cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dovit_deploy.families.evovit import cost, deit, evo_levit, levit, selection
from dovit_deploy.families.evovit.deit import DeitRun, EvoDeit
from dovit_deploy.families.evovit.evo_levit import LevitRun
from dovit_deploy.families.evovit.levit import LevitAttention, LevitDown
from dovit_deploy.families.evovit.spec import TokenSelection
from tests.mutants.mutant import Catalogue, Overlay, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="evo deit")
def the_least_attended_are_chosen(patch: Patch) -> None:
    def by_score(scores: Tensor) -> tuple[Tensor, Tensor]:
        values, order = torch.sort(scores, descending=False)
        return values, order

    patch.setattr(selection, "by_score", by_score)


@CATALOGUE.add(caught_by="evo deit")
def counts_are_rounded_and_not_truncated(patch: Patch) -> None:
    patch.setattr(TokenSelection, "chosen", lambda self, patches: round(patches * self.ratio))


@CATALOGUE.add(caught_by="evo deit")
def scores_are_products_without_softmax(patch: Patch) -> None:
    def scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
        return (key * query[:1]).sum(-1)

    patch.setattr(selection, "class_scores", scores)


@CATALOGUE.add(caught_by="evo deit")
def scores_forget_the_scale(patch: Patch) -> None:
    original = selection.class_scores

    def scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
        return original(query * (query.shape[-1] // heads) ** 0.5, key, heads)

    patch.setattr(selection, "class_scores", scores)


@CATALOGUE.add(caught_by="evo deit")
def tradeoffs_weigh_the_past(patch: Patch) -> None:
    original = selection.mixed

    def mixed(before: Tensor | None, now: Tensor, tradeoff: Any) -> Tensor:
        return now if before is None else original(before, now, 1.0 - tradeoff)

    patch.setattr(deit, "mixed", mixed)


@CATALOGUE.add(caught_by="evo levit")
def scores_start_anew_in_every_layer(patch: Patch) -> None:
    patch.setattr(evo_levit, "mixed", lambda before, now, tradeoff: now)


@CATALOGUE.add(caught_by="evo deit")
def the_norm_comes_before_the_mean(patch: Patch) -> None:
    def decode(self: EvoDeit, run: DeitRun) -> Tensor:
        return self.head(self.norm(run.tokens[1:]).mean(0, keepdim=True))

    patch.setattr(EvoDeit, "decode", decode)


@CATALOGUE.add(caught_by="evo deit")
def the_class_token_is_classified(patch: Patch) -> None:
    patch.setattr(EvoDeit, "decode", lambda self, run: self.head(self.norm(run.tokens[:1])))


@CATALOGUE.add(caught_by="evo prunecls")
def what_prunecls_leaves_out_is_counted_in(patch: Patch) -> None:
    original = DeitRun.run_chosen

    def run_chosen(self: Any, selection: Any, chosen: Tensor, rest: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        tokens, scores = original(self, selection, chosen, rest, scores)
        left_out = selection.last == self.model.spec.depth
        return torch.cat([tokens, rest], -2) if left_out else tokens, scores

    patch.setattr(DeitRun, "run_chosen", run_chosen)


@CATALOGUE.add(caught_by="evo grid")
def patches_stay_sorted_where_positions_are_read(patch: Patch) -> None:
    patch.setattr(deit, "in_raster_order", lambda run: run.tokens[run.extra :])


@CATALOGUE.add(caught_by="evo grid")
def patches_are_sent_and_not_fetched(patch: Patch) -> None:
    def in_raster_order(run: DeitRun) -> Tensor:
        assert run.order is not None
        return run.tokens[run.extra :].index_select(0, run.order)

    patch.setattr(deit, "in_raster_order", in_raster_order)


@CATALOGUE.add(caught_by="evo levit")
def the_representative_is_a_plain_mean(patch: Patch) -> None:
    patch.setattr(evo_levit, "torch", Overlay(torch, mv=lambda matrix, weights: matrix.mean(1)))


@CATALOGUE.add(caught_by="evo levit")
def subsampling_forgets_the_order(patch: Patch) -> None:
    original = LevitRun.subsample

    def subsample(self: Any, down: LevitDown) -> None:
        self.order = None
        original(self, down)

    patch.setattr(LevitRun, "subsample", subsample)


@CATALOGUE.add(caught_by="evo levit")
def subsampling_takes_the_odd_rows(patch: Patch) -> None:
    def thinned(self: LevitDown, patches: Tensor) -> Tensor:
        on_grid = patches.reshape(*self.grid, *patches.shape[1:])
        return on_grid[1 :: self.stride, 1 :: self.stride].flatten(0, 1)

    patch.setattr(LevitDown, "thinned", thinned)


@CATALOGUE.add(caught_by="evo levit")
def the_class_token_is_thinned_out_of_the_queries(patch: Patch) -> None:
    def forward(self: LevitDown, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens + self.positions
        queries = torch.cat([tokens[1:2], self.thinned(tokens[1:])])
        fewer, scores = self.attention(queries, tokens)
        return fewer + self.mlp(fewer), scores[1:]

    patch.setattr(LevitDown, "forward", forward)


@CATALOGUE.add(caught_by="evo levit")
def the_activation_follows_the_projection(patch: Patch) -> None:
    def forward(self: Any, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.query(queries), self.key(tokens)
        seen = levit.attention(query, key, self.value(tokens), self.heads)
        scores = levit.class_scores(query, key, self.heads) / self.heads
        return torch.nn.functional.hardswish(self.output(seen)), scores

    patch.setattr(LevitAttention, "forward", forward)


@CATALOGUE.add(caught_by="evo levit, one left out")
def a_single_token_left_out_waits_like_any_other(patch: Patch) -> None:
    """The source's own way with it is a quirk, which the released weights were trained with."""
    original = LevitRun.run_chosen

    def run_chosen(self: Any, selection: Any, chosen: Tensor, rest: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        tokens, after = original(self, selection, chosen, rest, scores)
        return tokens, torch.cat([after[:-1], scores[-1:]]) if len(rest) == 1 else after

    patch.setattr(LevitRun, "run_chosen", run_chosen)


@CATALOGUE.add(caught_by="evo cost")
def every_layer_costs_all_tokens(patch: Patch) -> None:
    patch.setattr(cost, "running_tokens", lambda selections, kept, layer, everything: everything)
