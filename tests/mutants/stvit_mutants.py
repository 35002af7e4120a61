"""Misreadings of STViT-R: windows, what is padded when, what looks at what, and the mask that is as it is released."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovit_deploy.families import folding
from dovit_deploy.families.stvit import attention, cost, semantic, swin
from dovit_deploy.families.stvit.attention import ShiftMask
from dovit_deploy.families.stvit.cost import AttentionCounts
from dovit_deploy.families.stvit.network import StvitDeit
from dovit_deploy.families.stvit.semantic import CrossBlock, SemanticStage, SemanticUnit, WindowPooling
from dovit_deploy.families.stvit.spec import SAMPLES
from dovit_deploy.families.stvit.swin import SwinBlock, SwinConvStem
from dovit_deploy.families.stvit.windows import with_empty
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="stvit classifier")
def shifted_windows_see_across_the_seam(patch: Patch) -> None:
    forward = ShiftMask.forward
    patch.setattr(ShiftMask, "forward", lambda self: forward(self) * 0)


@CATALOGUE.add(caught_by="stvit classifier")
def grids_are_rolled_the_other_way(patch: Patch) -> None:
    table = attention.window_table
    patch.setattr(attention, "window_table", lambda grid, window, *, shift=0: table(grid, window, shift=-shift))


@CATALOGUE.add(caught_by="stvit classifier")
def biases_are_those_of_the_opposite_position(patch: Patch) -> None:
    table = folding.relative_table
    patch.setattr(folding, "relative_table", lambda window: np.ascontiguousarray(table(window).T))


@CATALOGUE.add(caught_by="stvit classifier")
def four_neighbours_are_joined_in_raster_order(patch: Patch) -> None:
    table = swin.merging_table
    patch.setattr(swin, "merging_table", lambda grid: table(grid)[:, [0, 2, 1, 3]])


@CATALOGUE.add(caught_by="stvit classifier")
def bins_do_not_overlap(patch: Patch) -> None:
    bins = semantic.pooling_table

    def apart(window: tuple[int, int], samples: int) -> Any:
        table = bins(window, samples)
        # The last row and column of a bin are left to the next.
        side = round(table.shape[1] ** 0.5)
        kept = [row * side + column for row in range(side - 1) for column in range(side - 1)]
        return table[:, kept]

    patch.setattr(semantic, "pooling_table", apart)


@CATALOGUE.add(caught_by="stvit classifier")
def windows_are_averaged(patch: Patch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        binned = self.rows(with_empty(x, needed=self.rows.outside))
        return binned.reshape(*binned.shape[:-2], -1, self.largest, binned.shape[-1]).mean(-2)  # type: ignore[no-any-return]

    patch.setattr(WindowPooling, "forward", forward)


@CATALOGUE.add(caught_by="stvit classifier")
def semantic_tokens_do_not_see_themselves(patch: Patch) -> None:
    seen = semantic.seen_while_pooling

    def without(spec: Any) -> Any:
        table = seen(spec)
        table[:, : SAMPLES**2] = table[:, SAMPLES**2 : SAMPLES**2 + 1]
        return table

    patch.setattr(semantic, "seen_while_pooling", without)


@CATALOGUE.add(caught_by="stvit classifier")
def patches_lie_where_windows_do(patch: Patch) -> None:
    patch.setattr(semantic, "PATCH_STEP", 0)


@CATALOGUE.add(caught_by="stvit classifier")
def learned_tokens_are_added_in_every_unit(patch: Patch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x, self.global_tokens)
        return x

    patch.setattr(SemanticStage, "forward", forward)


@CATALOGUE.add(caught_by="stvit classifier")
def learned_tokens_are_looked_at_too(patch: Patch) -> None:
    def forward(self: Any, x: Tensor, guide: Tensor | None = None) -> Tensor:
        x = self.entry(x)
        pooled = self.pool(x)
        semantic = self.raster(self.pooling(pooled, self.seen(torch.cat([pooled, x], -2))))
        semantic = semantic if guide is None else semantic + guide
        semantic = self.exchange(semantic, torch.cat([semantic, x], -2))
        return self.recovery(x, self.everywhere(self.local(semantic)))  # type: ignore[no-any-return]

    patch.setattr(SemanticUnit, "forward", forward)


@CATALOGUE.add(caught_by="stvit classifier")
def keys_are_not_normed(patch: Patch) -> None:
    def forward(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        queries = self.norm1(x)
        mixed = self.scale1(self.attention(queries, queries if y is None else y))
        x = x + mixed if self.residual else mixed
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    patch.setattr(CrossBlock, "forward", forward)


@CATALOGUE.add(caught_by="stvit classifier")
def the_stem_ends_without_an_activation(patch: Patch) -> None:
    def forward(self: Any, pixels: Tensor) -> Tensor:
        return self.second(torch.nn.functional.hardswish(self.first(pixels)))  # type: ignore[no-any-return]

    patch.setattr(SwinConvStem, "forward", forward)


@CATALOGUE.add(caught_by="stvit classifier")
def layer_scales_are_forgotten_in_folding(patch: Patch) -> None:
    patch.setattr(folding, "SCALED", {".scale1.factor": ".attention.output"})
    deployed = folding.deployed
    patch.setattr(
        folding,
        "deployed",
        lambda state: {name: value for name, value in deployed(state).items() if not name.endswith(".factor")},
    )


@CATALOGUE.add(caught_by="stvit backbone")
def windows_are_padded_before_the_norm(patch: Patch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        filled = self.norm1(with_empty(x, needed=self.outside))
        x = x + self.scale1(self.attention(filled, filled))
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    patch.setattr(SwinBlock, "forward", forward)


@CATALOGUE.add(caught_by="stvit backbone")
def the_released_mask_hides_all_padding(patch: Patch) -> None:
    def exact(grid: Any, padding: Any) -> Any:
        hidden = np.zeros(grid, dtype=bool)
        hidden[grid[0] - padding[0] :] = True
        hidden[:, grid[1] - padding[1] :] = True
        return hidden

    patch.setattr(semantic, "released_corner", exact)


@CATALOGUE.add(caught_by="stvit backbone")
def padding_is_counted_in_semantic_tokens(patch: Patch) -> None:
    corner = semantic.released_corner

    def scaled(grid: Any, padding: Any) -> Any:
        return corner(grid, tuple(side and max(1, side * SAMPLES // 7) for side in padding))

    patch.setattr(semantic, "released_corner", scaled)


@CATALOGUE.add(caught_by="stvit backbone")
def neighbourhoods_begin_at_their_window(patch: Patch) -> None:
    table = semantic.neighbourhood_table
    patch.setattr(
        semantic,
        "neighbourhood_table",
        lambda grid, windows, *, step, span, before=0: table(grid, windows, step=step, span=span),
    )


@CATALOGUE.add(caught_by="stvit deit")
def learned_tokens_of_deit_are_left_out(patch: Patch) -> None:
    decode = StvitDeit.decode

    def without(self: Any, tokens: Tensor) -> Tensor:
        self.global_tokens = torch.nn.Parameter(torch.zeros_like(self.global_tokens))
        return decode(self, tokens)

    patch.setattr(StvitDeit, "decode", without)


@CATALOGUE.add(caught_by="stvit cost")
def overlapping_patches_are_counted_once(patch: Patch) -> None:
    count = cost._when_classifying

    def once(image: int, semantic: int) -> Any:
        look, exchange, recover = count(image, semantic)
        return AttentionCounts(look.queries, image + semantic, look.pairs), exchange, recover

    patch.setattr(cost, "_when_classifying", once)


@CATALOGUE.add(caught_by="stvit cost")
def recovery_is_counted_without_its_neighbourhood(patch: Patch) -> None:
    count = cost._at_any_size

    def narrow(spec: Any, image: int, semantic: int) -> Any:
        first, second, _ = count(spec, image, semantic)
        return first, second, AttentionCounts(image, semantic + 1, image * semantic)

    patch.setattr(cost, "_at_any_size", narrow)
