"""MACs of LeViT and of Evo-ViT on LeViT: layers under a selection count the tokens that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.evovit_levit_spec import EvoLevitSpec
from dovit_deploy.bundle.levit_spec import LevitSpec
from dovit_deploy.cost.flop_report import FlopReport
from dovit_deploy.cost.running import checked_counts, running_tokens


@dataclass(frozen=True)
class LevitCost:
    """MACs of the network of `spec`, with all tokens or, for Evo-ViT, with those that its selections choose."""

    spec: LevitSpec | EvoLevitSpec

    def dense(self) -> FlopReport:
        """Nothing selected (ratios 1)."""
        return self._report(None)

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """`kept[i + 1]` tokens, class and representative token included, run under selection i.

        Layers under no selection run on all tokens of their stage's grid, whatever `kept[0]` says.
        """
        return self._report(checked_counts(kept, self.spec.counts))

    def _report(self, kept: Sequence[int] | None) -> FlopReport:
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
        projections = tokens * part.width * (2 * keys + 2 * values)
        return projections + tokens * tokens * (keys + values) + 2 * tokens * part.width * part.hidden

    def _subsample(self, number: int) -> int:
        part, before, after = self.spec.subsamples[number], self.spec.stages[number].width, self.spec.stages[number + 1]
        tokens, fewer = (self.spec.extra_tokens + self._patches(stage) for stage in (number, number + 1))
        keys, values = part.heads * part.key, part.heads * part.value
        projections = tokens * before * (keys + values) + fewer * (before * keys + values * after.width)
        return projections + tokens * fewer * (keys + values) + 2 * fewer * after.width * part.hidden
