"""Misreadings of the cost: what counts, and for how many tokens."""

from __future__ import annotations

from typing import Any

from dovit_deploy.families.vit import cost
from dovit_deploy.families.vit.cost import VisionTransformerCost
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="cost")
def auxiliary_heads_are_counted_on_the_full_grid(patch: Patch) -> None:
    patch.setattr(VisionTransformerCost, "_gate", lambda self, head, running: self._head(head, self.spec.width))


@CATALOGUE.add(caught_by="cost")
def up_sampling_heads_are_counted_on_running_tokens(patch: Patch) -> None:
    def on_running(self: Any, head: Any, running: int) -> int:
        return int(self._head(head, self.spec.width)) * running // int(self.spec.patches)

    patch.setattr(VisionTransformerCost, "_gate", on_running)


@CATALOGUE.add(caught_by="cost")
def attention_is_forgotten(patch: Patch) -> None:
    def block_macs(tokens: int, width: int, hidden: int, mlp: str = "gelu") -> int:
        del mlp
        return tokens * (4 * width * width + 2 * width * hidden)

    patch.setattr(cost, "block_macs", block_macs)


@CATALOGUE.add(caught_by="cost")
def attention_is_counted_against_all_tokens(patch: Patch) -> None:
    def layer(self: Any, tokens: int) -> int:
        spec: VisionTransformerSpec = self.spec
        attention = 2 * tokens * spec.tokens * spec.width
        return tokens * (4 * spec.width**2 + 2 * spec.width * spec.hidden) + attention

    patch.setattr(VisionTransformerCost, "_layer", layer)


@CATALOGUE.add(caught_by="cost")
def every_layer_is_counted_for_all_tokens(patch: Patch) -> None:
    layer = VisionTransformerCost._layer
    patch.setattr(VisionTransformerCost, "_layer", lambda self, tokens: layer(self, self.spec.tokens))


@CATALOGUE.add(caught_by="cost")
def class_embeddings_of_the_mask_head_cost_nothing(patch: Patch) -> None:
    count = cost._mask_head
    patch.setattr(cost, "_mask_head", lambda head, patches, width, classes: count(head, patches, width, 0))


@CATALOGUE.add(caught_by="cost")
def up_sampling_changes_no_positions(patch: Patch) -> None:
    count = cost._setr_head
    patch.setattr(
        cost,
        "_setr_head",
        lambda head, patches, width, classes: count(head.model_copy(update={"up_scale": 1}), patches, width, classes),
    )


@CATALOGUE.add(caught_by="cost")
def the_head_is_counted_for_what_gates_answer(patch: Patch) -> None:
    count = cost.head_macs
    patch.setattr(cost, "head_macs", lambda head, patches, width, classes: count(head, 20, width, classes))


@CATALOGUE.add(caught_by="cost")
def lenses_of_taps_cost_nothing(patch: Patch) -> None:
    patch.setattr(VisionTransformerSpec, "lensed_taps", lambda self, gate: ())


@CATALOGUE.add(caught_by="cost")
def dense_counts_the_auxiliary_heads(patch: Patch) -> None:
    patch.setattr(
        VisionTransformerCost, "dense", lambda self: self.actual([self.spec.tokens] * len(self.spec.stage_layers))
    )
