"""Misreadings of pooled context: what is pooled, how much it weighs, and whose map it goes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dovit_deploy.families.vit import context, network
from dovit_deploy.families.vit.context import Beside, PooledKeys
from dovit_deploy.families.vit.cost import VisionTransformerCost
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="pooled")
def a_key_weighs_as_one_token_whatever_it_stands_for(patch: Patch) -> None:
    made = context.keys_from_sums

    def unweighed(sums: Tensor, patches: int) -> PooledKeys:
        keys = made(sums, patches)
        return keys._replace(bias=keys.bias.clamp(max=0.0))

    patch.setattr(network, "keys_from_sums", unweighed)


@CATALOGUE.add(caught_by="pooled")
def the_count_itself_is_added_to_scores(patch: Patch) -> None:
    made = context.keys_from_sums

    def counted(sums: Tensor, patches: int) -> PooledKeys:
        keys = made(sums, patches)
        return keys._replace(bias=torch.where(keys.bias >= 0, keys.bias.exp(), keys.bias))

    patch.setattr(network, "keys_from_sums", counted)


@CATALOGUE.add(caught_by="pooled")
def a_class_that_nothing_stopped_as_is_seen(patch: Patch) -> None:
    patch.setattr(context, "EMPTY", 0.0)


@CATALOGUE.add(caught_by="pooled")
def every_layer_takes_the_next_ones_map(patch: Patch) -> None:
    attend = Beside.attend

    def shifted(self: Any, layer: int, block: Any) -> Any:
        return attend(self, layer + 1 if str(layer + 1) in self.maps else layer, block)

    patch.setattr(Beside, "attend", shifted)


@CATALOGUE.add(caught_by="pooled")
def pooled_keys_are_not_normed(patch: Patch) -> None:
    attend = Beside.attend

    def bare(self: Any, layer: int, block: Any) -> Any:
        with torch.no_grad():
            normed, block.norm1 = block.norm1, torch.nn.Identity()
            made = attend(self, layer, block)
            block.norm1 = normed
        return made

    patch.setattr(Beside, "attend", bare)


@CATALOGUE.add(caught_by="pooled")
def only_what_stopped_last_is_seen(patch: Patch) -> None:
    add = context.with_stopped
    patch.setattr(network, "with_stopped", lambda lens, patches, chosen, before: add(lens, patches, chosen, None))


@CATALOGUE.add(caught_by="pooled")
def what_runs_is_pooled_too(patch: Patch) -> None:
    chosen = context.members
    patch.setattr(network, "members", lambda votes, running: chosen(votes, running[:0]))


@CATALOGUE.add(caught_by="pooled")
def what_stopped_before_is_pooled_again(patch: Patch) -> None:
    votes = network.TokenGate.votes

    def everywhere(self: Any, logits: Tensor, index: Tensor) -> Tensor:
        found = votes(self, logits, index)
        return torch.where(found.sum(1, keepdim=True) > 0, found, 1.0 / found.shape[1])

    patch.setattr(network.TokenGate, "votes", everywhere)


@CATALOGUE.add(caught_by="pooled")
def what_stops_is_pooled_as_it_is(patch: Patch) -> None:
    add = context.with_stopped

    def bare(lens: Any, patches: Tensor, chosen: Tensor, before: Tensor | None) -> Tensor:
        class Plain(torch.nn.Module):
            norm, linear = torch.nn.Identity(), torch.nn.Identity()

        return add(Plain(), patches, chosen, before)  # type: ignore[arg-type]

    patch.setattr(network, "with_stopped", bare)


@CATALOGUE.add(caught_by="cost")
def maps_of_pooled_keys_cost_nothing(patch: Patch) -> None:
    def two(self: Any, running: int) -> int:
        return int(self.spec.pooled_keys * (2 * self.spec.width**2 + 2 * running * self.spec.width))

    patch.setattr(VisionTransformerCost, "_context", two)


@CATALOGUE.add(caught_by="cost")
def sums_by_class_cost_nothing(patch: Patch) -> None:
    patch.setattr(VisionTransformerCost, "_pooling", lambda self: self.spec.pooled_keys * self.spec.width**2)
