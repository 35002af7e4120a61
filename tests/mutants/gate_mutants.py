"""Misreadings of the gates: when they look, at what, and what they compare."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.families.tokens import partition
from dovit_deploy.families.vit import network
from dovit_deploy.families.vit.network import Decision, GridGate, MiddleStage, TokenGate
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime import settings
from tests.mutants.mutant import Catalogue, Overlay, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="mask")
def gates_look_after_the_layer(patch: Patch) -> None:
    def stage_layers(spec: VisionTransformerSpec) -> tuple[tuple[int, int], ...]:
        cuts = [0, *(gate.layer + 1 for gate in spec.gates), spec.depth]
        return tuple(pairwise(cuts))

    patch.setattr(VisionTransformerSpec, "stage_layers", property(stage_layers))


@CATALOGUE.add(caught_by="mask")
def gates_look_a_layer_early(patch: Patch) -> None:
    def stage_layers(spec: VisionTransformerSpec) -> tuple[tuple[int, int], ...]:
        cuts = [0, *(gate.layer - 1 for gate in spec.gates), spec.depth]
        return tuple(pairwise(cuts))

    patch.setattr(VisionTransformerSpec, "stage_layers", property(stage_layers))


@CATALOGUE.add(caught_by="certain")
def a_confidence_equal_to_the_threshold_stops(patch: Patch) -> None:
    patch.setattr(network, "stops", lambda confidence, limit, floor: (confidence >= limit) | (confidence < floor))


@CATALOGUE.add(caught_by="certain")
def a_confidence_equal_to_the_floor_stops(patch: Patch) -> None:
    patch.setattr(network, "stops", lambda confidence, limit, floor: (confidence > limit) | (confidence <= floor))


@CATALOGUE.add(caught_by="mask")
def the_floor_is_ignored(patch: Patch) -> None:
    patch.setattr(network, "stops", lambda confidence, limit, floor: confidence > limit)


@CATALOGUE.add(caught_by="mask")
def the_floor_keeps_the_hopeless_running(patch: Patch) -> None:
    patch.setattr(network, "stops", lambda confidence, limit, floor: (confidence > limit) & (confidence >= floor))


@CATALOGUE.add(caught_by="mask")
def uncertain_tokens_stop(patch: Patch) -> None:
    patch.setattr(network, "stops", lambda confidence, limit, floor: confidence < limit)


@CATALOGUE.add(caught_by="mask")
def every_gate_uses_the_first_gates_thresholds(patch: Patch) -> None:
    first: list[Tensor] = []
    look = TokenGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        first.append(thresholds)
        return look(self, tokens, index, first[0], floor)

    patch.setattr(TokenGate, "forward", forward)


@CATALOGUE.add(caught_by="session")
def the_session_gives_a_gate_its_neighbours_thresholds(patch: Patch) -> None:
    given = settings.thresholds_from
    patch.setattr(settings, "thresholds_from", lambda value, manifest: given(value, manifest)[::-1].copy())


@CATALOGUE.add(caught_by="mask")
def all_classes_share_the_first_ones_threshold(patch: Patch) -> None:
    look = TokenGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        return look(self, tokens, index, thresholds[:1].expand_as(thresholds), floor)

    patch.setattr(TokenGate, "forward", forward)


@CATALOGUE.add(caught_by="mask")
def stopped_tokens_resume(patch: Patch) -> None:
    look = TokenGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        return look(self, tokens, torch.arange(len(tokens)), thresholds, floor)

    patch.setattr(TokenGate, "forward", forward)


@CATALOGUE.add(caught_by="grid")
def stopped_tokens_resume_on_the_grid(patch: Patch) -> None:
    look = GridGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        return look(self, tokens, torch.arange(len(tokens)), thresholds, floor)

    patch.setattr(GridGate, "forward", forward)


@CATALOGUE.add(caught_by="grid")
def the_up_sampling_head_does_not_see_stopped_tokens(patch: Patch) -> None:
    look = GridGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        seen = torch.zeros_like(tokens).index_copy(0, index, tokens[index])
        return look(self, seen, index, thresholds, floor)

    patch.setattr(GridGate, "forward", forward)


@CATALOGUE.add(caught_by="mask")
def the_gate_looks_at_normed_tokens(patch: Patch) -> None:
    look = TokenGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        return look(self, functional.layer_norm(tokens, tokens.shape[-1:]), index, thresholds, floor)

    patch.setattr(TokenGate, "forward", forward)


@CATALOGUE.add(caught_by="distilled")
def the_distillation_token_is_taken_for_a_patch(patch: Patch) -> None:
    build = TokenGate.__init__

    def forgetful(self: Any, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        self.extra = 1

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        decision = look(self, tokens, index, thresholds, floor)
        return decision._replace(confidence=decision.confidence[1:], label=decision.label[1:])

    look = TokenGate.forward
    patch.setattr(TokenGate, "__init__", forgetful)
    patch.setattr(TokenGate, "forward", forward)


@CATALOGUE.add(caught_by="grid")
def logits_are_pooled_and_not_probabilities(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        pooled = functional.avg_pool2d(self.head(tokens[self.extra :], self.grid), self.scale, self.scale).softmax(1)
        return _decide(self, pooled, index, thresholds, floor)

    patch.setattr(GridGate, "forward", forward)


@CATALOGUE.add(caught_by="grid")
def the_maximum_is_taken_after_pooling(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        pooled = functional.avg_pool2d(self.head(tokens[self.extra :], self.grid).softmax(1), self.scale, self.scale)
        return _decide(self, pooled, index, thresholds, floor)

    patch.setattr(GridGate, "forward", forward)


@CATALOGUE.add(caught_by="grid")
def the_surest_pixel_speaks_for_its_token(patch: Patch) -> None:
    patch.setattr(network, "functional", Overlay(functional, avg_pool2d=functional.max_pool2d))


@CATALOGUE.add(caught_by="grid")
def the_grid_is_read_by_columns(patch: Patch) -> None:
    look = GridGate.forward

    def forward(self: Any, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        rows, columns = self.grid
        turned = tokens[self.extra :].reshape(columns, rows, -1).transpose(0, 1).reshape(rows * columns, -1)
        return look(self, torch.cat([tokens[: self.extra], turned]), index, thresholds, floor)

    patch.setattr(GridGate, "forward", forward)


def _decide(self: Any, pooled: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
    """What `GridGate` does once it has a map of probabilities (1, K, h, w)."""
    confidence, label = (values.reshape(-1) for values in pooled.max(1))
    stop = network.stops(confidence, thresholds[:1], floor)[index[self.extra :] - self.extra]
    order, count = partition(network.kept_mask(index, stop, self.extra, self.total))
    return Decision(order, count, confidence, label)


@CATALOGUE.add(caught_by="all_stop")
def the_last_stage_is_skipped_when_every_patch_stopped(patch: Patch) -> None:
    run = MiddleStage.run

    def skip(self: Any, tokens: Tensor, index: Tensor) -> tuple[Tensor, list[Tensor]]:
        return (tokens[index], {}) if len(index) == self.model.spec.extra_tokens else run(self, tokens, index)

    patch.setattr(MiddleStage, "run", skip)
