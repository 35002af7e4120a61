"""MACs of Evo-ViT on DeiT and on LeViT, and of LeViT: layers under a selection count the tokens that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.families.evovit.spec import (
    ClassTokenHead,
    EvoDeitSpec,
    EvoLevitSpec,
    LevitSpec,
    PooledHead,
    TokenSelection,
    selection_of_layer,
)
from dovit_deploy.families.macs import CostModel, FlopReport
from dovit_deploy.families.vit.cost import block_macs, head_macs, stem_macs


@dataclass(frozen=True)
class EvoDeitCost(CostModel[EvoDeitSpec]):
    """`kept[i + 1]` tokens, extra tokens included, run under selection i; `kept[0]`, all of them, elsewhere."""

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        spec = self.spec
        # Not `spec.tokens` throughout: what is counted is what was reported to have run.
        whole = spec.tokens if kept is None else kept[0]
        layers = sum(
            block_macs(running_tokens(spec.selections, kept, layer, whole), spec.width, spec.hidden)
            for layer in range(spec.depth)
        )
        stem = stem_macs(spec.stem, patch=spec.patch, width=spec.width, grid=spec.grid)
        return FlopReport(stem=stem, layers=layers, gates=0, head=self._head())

    def _head(self) -> int:
        spec = self.spec
        if isinstance(spec.head, PooledHead | ClassTokenHead):
            # One linear layer, or one for each of class and distillation token.
            return spec.extra_tokens * spec.width * spec.classes
        return head_macs(spec.head, spec.patches, spec.width, spec.classes)


@dataclass(frozen=True)
class LevitCost(CostModel[LevitSpec | EvoLevitSpec]):
    """`kept[i + 1]` tokens, class and representative token included, run under selection i.

    Layers under no selection run on all tokens of their stage's grid, whatever `kept[0]` says.
    """

    def report(self, kept: Sequence[int] | None) -> FlopReport:
        spec = self.spec
        layers, selections = 0, spec.selections if isinstance(spec, EvoLevitSpec) else ()
        for number, (first, last) in enumerate(spec.stage_layers):
            whole = spec.extra_tokens + self._patches(number)
            layers += sum(
                self._layer(number, running_tokens(selections, kept, layer, whole)) for layer in range(first, last)
            )
            layers += self._subsample(number) if number < len(spec.subsamples) else 0
        head = (1 + spec.distilled) * spec.stages[-1].width * spec.classes
        return FlopReport(stem=self._stem(), layers=layers, gates=0, head=head)

    def _patches(self, stage: int) -> int:
        rows, columns = self.spec.stage_grids[stage]
        return rows * columns

    def _stem(self) -> int:
        side, total, inputs = self.spec.size[0], 0, 3
        for halving in (8, 4, 2, 1):
            side, outputs = side // 2, self.spec.stages[0].width // halving
            total += side * side * 9 * inputs * outputs
            inputs = outputs
        return total

    def _layer(self, stage: int, tokens: int) -> int:
        part = self.spec.stages[stage]
        keys, values = part.heads * part.key, part.heads * part.value
        # Query and key, value and output.
        projections = tokens * part.width * (2 * keys + 2 * values)
        return projections + tokens * tokens * (keys + values) + 2 * tokens * part.width * part.hidden

    def _subsample(self, number: int) -> int:
        part, before, after = self.spec.subsamples[number], self.spec.stages[number].width, self.spec.stages[number + 1]
        tokens, fewer = (self.spec.extra_tokens + self._patches(stage) for stage in (number, number + 1))
        keys, values = part.heads * part.key, part.heads * part.value
        # All tokens are keys and values; only every `stride`-th row and column asks.
        projections = tokens * before * (keys + values) + fewer * (before * keys + values * after.width)
        return projections + tokens * fewer * (keys + values) + 2 * fewer * after.width * part.hidden


def running_tokens(
    selections: tuple[TokenSelection, ...], kept: Sequence[int] | None, layer: int, everything: int
) -> int:
    """Tokens that run through `layer`; everything where nothing is selected or `kept` is None."""
    number = selection_of_layer(selections, layer)
    return everything if kept is None or number is None else kept[number + 1]
