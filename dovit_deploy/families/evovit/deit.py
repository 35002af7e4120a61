"""Evo-ViT on DeiT: the patches of highest score run, the rest wait unchanged and rejoin.

Source: YifanXu74/Evo-ViT. Without selections this is DeiT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dovit_deploy.families.evovit.selection import SelectiveRun, mixed, ranks, rows, scored_block
from dovit_deploy.families.evovit.spec import ClassTokenHead, EvoDeitSpec, PooledHead, TokenSelection
from dovit_deploy.families.heads import decode_head_from_spec
from dovit_deploy.families.layers import Attend, PatchTransformer, attention, positions_at_size
from dovit_deploy.families.registry import Family
from dovit_deploy.families.stages import ImageOutput


class EvoDeit(PatchTransformer):
    """DeiT's parameters, and how tokens pass through them.

    Args:
        spec: the architecture.
        trainable: keep batch norms (of a convolutional stem or an up-sampling head) apart.
    """

    spec: EvoDeitSpec

    def __init__(self, spec: EvoDeitSpec, *, trainable: bool = False) -> None:
        super().__init__(spec, final_norm=True, trainable=trainable)
        self.head = (
            DeitHead(spec)
            if isinstance(spec.head, PooledHead | ClassTokenHead)
            else decode_head_from_spec(spec.head, spec.width, spec.classes, trainable=trainable)
        )

    def run(self, tokens: Tensor, selections: tuple[TokenSelection, ...], attend: Attend = attention) -> DeitRun:
        """`tokens` (..., E + N, C) through all layers under `selections`."""
        run = DeitRun(self, tokens, attend)
        # They follow one another within the layers: the spec has checked it.
        for selection in selections:
            run.select(selection)
        run.run_until(self.spec.depth)
        return run

    def decode(self, run: DeitRun) -> Tensor:
        """Logits (1, K) of a classifier, (1, K, h, w) of a decode head."""
        tokens, extra = run.tokens, self.spec.extra_tokens
        if isinstance(self.spec.head, PooledHead):
            # The mean first, then the norm.
            return self.head(self.norm(tokens[extra:].mean(0, keepdim=True)))  # type: ignore[no-any-return]
        if isinstance(self.spec.head, ClassTokenHead):
            return self.head(self.norm(tokens[:extra]))  # type: ignore[no-any-return]
        return self.head(self.norm(in_raster_order(run)), self.spec.grid)  # type: ignore[no-any-return]

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        run = self.run(self.embed(pixels), () if dense else self.spec.selections)
        return ImageOutput((self.decode(run),), tuple(run.chosen))


class DeitRun(SelectiveRun):
    """Tokens on their way through DeiT's layers: the rest of a selection waits unchanged."""

    def __init__(self, model: EvoDeit, tokens: Tensor, attend: Attend) -> None:
        super().__init__(tokens, extra=model.spec.extra_tokens)
        self.model, self.attend = model, attend

    def run_layer(self, layer: int, tokens: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        tradeoffs = self.model.spec.tradeoffs
        tokens, now = scored_block(self.model.blocks[layer], tokens, self.attend)  # type: ignore[arg-type]
        # Plain DeiT has no trade-offs, and nothing reads its scores.
        return tokens, mixed(scores, now[..., self.extra :], tradeoffs[layer] if tradeoffs else 1.0)

    def run_chosen(
        self, selection: TokenSelection, chosen: Tensor, rest: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = chosen.shape[-2]
        running, own = torch.cat([self.tokens[..., : self.extra, :], chosen], -2), scores[..., :count]
        for layer in range(selection.first, selection.last):
            running, own = self.run_layer(layer, running, own)
        spec = self.model.spec
        # `prunecls`: what the last layer does not run on takes no part in the mean.
        rejoins = spec.rejoin_last or selection.last < spec.depth
        tokens = torch.cat([running, rest], -2) if rejoins else running
        return tokens, torch.cat([own, scores[..., count:]], -1)


def in_raster_order(run: DeitRun) -> Tensor:
    """The patches (..., N, C) put back at their positions."""
    patches = run.tokens[..., run.extra :, :]
    return patches if run.order is None else rows(patches, ranks(run.order))


class DeitHead(nn.Module):
    """One linear layer for each row of (E, C), and the mean of their logits: (1, K)."""

    def __init__(self, spec: EvoDeitSpec) -> None:
        super().__init__()
        self.classifier = nn.Linear(spec.width, spec.classes)
        if spec.extra_tokens == 2:
            self.distilled = nn.Linear(spec.width, spec.classes)

    def forward(self, rows: Tensor) -> Tensor:
        # With a distillation token there are two rows, each with a layer of its own.
        if len(rows) == 1:
            return self.classifier(rows)  # type: ignore[no-any-return]
        return (self.classifier(rows[:1]) + self.distilled(rows[1:])) / 2  # type: ignore[no-any-return]


FAMILY = Family(build=EvoDeit, resized=positions_at_size)
