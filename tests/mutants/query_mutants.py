"""Misreadings of a head of queries: where they join, what of all tokens runs there, and how an answer is summed up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dovit_deploy.families import heads
from dovit_deploy.families.heads import Doubling
from dovit_deploy.families.vit.network import LastStage, VisionTransformer
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="queries")
def what_has_stopped_stays_away(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor) -> Tensor:
        model, queries = self.model, self.model.head.queries
        running = torch.cat([queries, self.run(tokens, index)[0]])
        for block in model.blocks[model.spec.rejoin :]:
            running = block(running)
        ending = model.norm(tokens.index_copy(0, index, running[len(queries) :]))
        patches = ending[model.spec.extra_tokens :]
        return model.head(model.norm(running[: len(queries)]), patches, model.spec.grid)  # type: ignore[no-any-return]

    patch.setattr(LastStage, "forward", forward)


@CATALOGUE.add(caught_by="queries")
def queries_join_one_layer_later(patch: Patch) -> None:
    def answer(self: Any, head: Any, tokens: Tensor) -> Tensor:
        first, *later = self.blocks[self.spec.rejoin :]
        joined = torch.cat([head.queries, first(tokens)])
        for block in later:
            joined = block(joined)
        joined, count = self.norm(joined), len(head.queries)
        return head(joined[:count], joined[count + self.spec.extra_tokens :], self.spec.grid)  # type: ignore[no-any-return]

    patch.setattr(VisionTransformer, "answer", answer)


@CATALOGUE.add(caught_by="queries")
def no_object_is_not_left_out_but_ruled_out(patch: Patch) -> None:
    def among_classes(values: Tensor, dim: int) -> Tensor:
        # A gate's is over axis 1, and has no such class.
        if dim != -1:
            return torch.softmax(values, dim)
        return torch.cat([torch.softmax(values[:, :-1], dim), torch.zeros(len(values), 1)], 1)

    patch.setattr(heads.Tensor, "softmax", among_classes)


@CATALOGUE.add(caught_by="queries")
def masks_are_not_squashed(patch: Patch) -> None:
    patch.setattr(heads.Tensor, "sigmoid", lambda values: values)


@CATALOGUE.add(caught_by="queries")
def doubling_norms_before_it_mixes(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, grid: Any) -> Tensor:
        spread = heads.finer_grid_from_tokens(torch.nn.functional.gelu(self.expand(tokens)), grid)
        normed = self.norm(spread.movedim(1, -1)).movedim(-1, 1)
        return self.conv(normed)[0].flatten(1).transpose(0, 1)  # type: ignore[no-any-return]

    patch.setattr(Doubling, "forward", forward)
