"""MACs of Evo-ViT on DeiT: layers under a selection count the tokens that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovit_deploy.bundle.evovit_deit_spec import ClassTokenHead, EvoDeitSpec, PooledHead
from dovit_deploy.cost.flop_report import FlopReport
from dovit_deploy.cost.running import checked_counts, running_tokens
from dovit_deploy.cost.vision_transformer import block_macs, head_macs, stem_macs


@dataclass(frozen=True)
class EvoDeitCost:
    """MACs of the network of `spec`, with all tokens or with those that its selections choose."""

    spec: EvoDeitSpec

    def dense(self) -> FlopReport:
        """Nothing selected (ratios 1)."""
        return self._report(None)

    def actual(self, kept: Sequence[int]) -> FlopReport:
        """`kept[i + 1]` tokens, extra tokens included, run under selection i; `kept[0]`, all of them, elsewhere."""
        return self._report(checked_counts(kept, self.spec.counts))

    def _report(self, kept: Sequence[int] | None) -> FlopReport:
        spec = self.spec
        whole = spec.tokens if kept is None else kept[0]
        layers = sum(
            block_macs(running_tokens(spec.selections, kept, layer, whole), spec.width, spec.hidden)
            for layer in range(spec.depth)
        )
        return FlopReport(stem=stem_macs(spec), layers=layers, gates=0, head=self._head())

    def _head(self) -> int:
        spec = self.spec
        if isinstance(spec.head, PooledHead | ClassTokenHead):
            return spec.extra_tokens * spec.width * spec.classes
        return head_macs(spec.head, spec.patches, spec.width, spec.classes)
