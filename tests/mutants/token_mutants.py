"""Misreadings of token passing: order, counts, what is restored, what the class token takes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.bundle import interface
from dovit_deploy.families import eager, tokens
from dovit_deploy.families.spec import ModelSpec
from dovit_deploy.families.vit import network
from dovit_deploy.families.vit.network import _LaterStage
from dovit_deploy.runtime import session
from dovit_deploy.runtime.session import Session
from dovit_deploy.runtime.settings import RunSettings
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


def _everything_but(index: Tensor, total: int) -> Tensor:
    return torch.ones(total, dtype=torch.bool).index_fill(0, index, False).nonzero()[:, 0]


@CATALOGUE.add(caught_by="quiet_mask")
def unstable_order_puts_another_token_where_the_class_token_belongs(patch: Patch) -> None:
    def partition(keep: Tensor) -> tuple[Tensor, Tensor]:
        order, count = tokens.partition(keep)
        number = int(count)
        return torch.cat([order[:number].flip(0), order[number:]]), count

    patch.setattr(network, "partition", partition)


@CATALOGUE.add(caught_by="mask")
def running_tokens_leave_raster_order(patch: Patch) -> None:
    def partition(keep: Tensor) -> tuple[Tensor, Tensor]:
        order, count = tokens.partition(keep)
        number = int(count)
        return torch.cat([order[:1], order[1:number].flip(0), order[number:]]), count

    patch.setattr(network, "partition", partition)


@CATALOGUE.add(caught_by="mask")
def stopped_tokens_are_listed_backwards(patch: Patch) -> None:
    def partition(keep: Tensor) -> tuple[Tensor, Tensor]:
        order, count = tokens.partition(keep)
        number = int(count)
        return torch.cat([order[:number], order[number:].flip(0)]), count

    patch.setattr(network, "partition", partition)


@CATALOGUE.add(caught_by="batch")
def a_batch_runs_its_mean_count(patch: Patch) -> None:
    def run(self: Session, pixels: Any) -> Any:
        images, manifest = [pixels[number : number + 1] for number in range(len(pixels))], self.bundle.manifest
        reports = [self.run_one(image, RunSettings.resolve(manifest))[1] for image in images]
        results = []
        for image, report in zip(images, reports, strict=True):
            keep, before = [], np.ones(report.keep[0].size, bool)
            for gate, own in enumerate(report.keep):
                mean = int(np.mean([other.keep[gate].sum() for other in reports]))
                chosen = np.argsort(~(own.reshape(-1) & before), kind="stable")
                chosen = chosen[before[chosen]][:mean]
                before = np.zeros_like(before)
                before[chosen] = True
                keep.append(before.reshape(own.shape))
            results.append(self.run_one(image, RunSettings.resolve(manifest, keep=keep)))
        return np.concatenate([logits for logits, _ in results]), [report for _, report in results]

    patch.setattr(Session, "run", run)


@CATALOGUE.add(caught_by="mask")
def the_class_token_is_not_counted_by_the_gate(patch: Patch) -> None:
    def partition(keep: Tensor) -> tuple[Tensor, Tensor]:
        order, count = tokens.partition(keep)
        return order, count - 1

    patch.setattr(network, "partition", partition)


@CATALOGUE.add(caught_by="tenth")
def the_class_token_is_forgotten_in_the_denominator(patch: Patch) -> None:
    patch.setattr(network, "aggregate_limit", lambda rate, total: tokens.aggregate_limit(rate, total - 1))


@CATALOGUE.add(caught_by="tenth")
def a_tenth_is_enough_to_aggregate(patch: Patch) -> None:
    def aggregate_limit(rate: float, total: int) -> int:
        return max(count for count in range(total) if not count or count / total < rate)

    patch.setattr(network, "aggregate_limit", aggregate_limit)


@CATALOGUE.add(caught_by="twentieth")
def any_stopped_token_is_aggregated(patch: Patch) -> None:
    patch.setattr(network, "aggregate_limit", lambda rate, total: 0)


@CATALOGUE.add(caught_by="mask")
def nothing_is_aggregated(patch: Patch) -> None:
    patch.setattr(network, "aggregate", lambda every, index, limit: every[:1])


@CATALOGUE.add(caught_by="mask")
def aggregated_only_once(patch: Patch) -> None:
    run = _LaterStage.run

    def once(self: Any, every: Tensor, index: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        if self.number > 1:
            self.limit = len(every)
        return run(self, every, index)

    patch.setattr(_LaterStage, "run", once)


@CATALOGUE.add(caught_by="mask")
def only_the_newly_stopped_are_aggregated(patch: Patch) -> None:
    seen: dict[str, Tensor] = {}

    def aggregate(every: Tensor, index: Tensor, limit: int) -> Tensor:
        earlier = seen.get("stopped", index[:0])
        seen["stopped"] = _everything_but(index, len(every))
        return tokens.aggregate(every, torch.cat([index, earlier]), limit)

    patch.setattr(network, "aggregate", aggregate)


@CATALOGUE.add(caught_by="mask")
def the_running_tokens_are_aggregated(patch: Patch) -> None:
    def aggregate(every: Tensor, index: Tensor, limit: int) -> Tensor:
        return 0.5 * (every[index[1:]].mean(0, keepdim=True) + every[:1])

    patch.setattr(network, "aggregate", aggregate)


@CATALOGUE.add(caught_by="mask")
def the_mean_replaces_the_class_token(patch: Patch) -> None:
    def aggregate(every: Tensor, index: Tensor, limit: int) -> Tensor:
        return 2 * tokens.aggregate(every, index, limit) - every[:1]

    patch.setattr(network, "aggregate", aggregate)


@CATALOGUE.add(caught_by="mask")
def the_sum_is_taken_for_the_mean(patch: Patch) -> None:
    def aggregate(every: Tensor, index: Tensor, limit: int) -> Tensor:
        return 0.5 * (every[_everything_but(index, len(every))].sum(0, keepdim=True) + every[:1])

    patch.setattr(network, "aggregate", aggregate)


@CATALOGUE.add(caught_by="all_stop")
def the_class_token_counts_among_the_averaged(patch: Patch) -> None:
    def aggregate(every: Tensor, index: Tensor, limit: int) -> Tensor:
        averaged = torch.cat([every[:1], every[_everything_but(index, len(every))]])
        return 0.5 * (averaged.mean(0, keepdim=True) + every[:1])

    patch.setattr(network, "aggregate", aggregate)


@CATALOGUE.add(caught_by="mask")
def stopped_tokens_are_set_to_zero(patch: Patch) -> None:
    def put_back(every: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return torch.zeros_like(every).index_copy(0, index, values)

    patch.setattr(network, "put_back", put_back)


@CATALOGUE.add(caught_by="mask")
def tokens_return_to_the_front_and_not_to_their_positions(patch: Patch) -> None:
    def put_back(every: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return torch.cat([values, every[_everything_but(index, len(every))]])

    patch.setattr(network, "put_back", put_back)


@CATALOGUE.add(caught_by="mask")
def the_class_token_is_not_carried_on(patch: Patch) -> None:
    def put_back(every: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return every.index_copy(0, index[1:], values[1:])

    patch.setattr(network, "put_back", put_back)


@CATALOGUE.add(caught_by="mask")
def stopped_tokens_are_still_attended(patch: Patch) -> None:
    def run(self: Any, every: Tensor, index: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        every = torch.cat([tokens.aggregate(every, index, self.limit), every[1:]])
        first, last = self.model.spec.stage_layers[self.number]
        for block in self.model.blocks[first:last]:
            every = tokens.put_back(every, index, tokens.take(block(every), index))
        return tokens.take(every, index), {}

    patch.setattr(_LaterStage, "run", run)


@CATALOGUE.add(caught_by="mask")
def stopped_tokens_run_on(patch: Patch) -> None:
    moved: list[Tensor] = []

    def run(self: Any, every: Tensor, index: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        every = torch.cat([tokens.aggregate(every, index, self.limit), every[1:]])
        first, last = self.model.spec.stage_layers[self.number]
        for block in self.model.blocks[first:last]:
            every = block(every)
        moved.append(every)
        return tokens.take(every, index), {}

    patch.setattr(_LaterStage, "run", run)
    # What stopped is written, too.
    patch.setattr(network, "put_back", lambda every, index, values: moved[-1])


@CATALOGUE.add(caught_by="session")
def the_first_gates_answers_go_to_the_last_stage(patch: Patch) -> None:
    def first(outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in interface.carried_from_outputs(outputs).items() if name in outputs}

    patch.setattr(session, "carried_from_outputs", first)


@CATALOGUE.add(caught_by="session")
def the_last_stage_gets_its_taps_in_another_order(patch: Patch) -> None:
    def backwards(spec: ModelSpec) -> dict[str, Any]:
        graphs = interface.graph_interfaces(spec)
        return {
            name: replace(graph, takes=graph.takes[:2] + graph.takes[:1:-1])
            if name == f"stage{len(spec.gates)}"
            else graph
            for name, graph in graphs.items()
        }

    patch.setattr(eager, "graph_interfaces", backwards)
