"""Misreadings of the network: padding, positions, norms, activations, attention, heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from dovit_deploy.families import folding, heads, layers, registry
from dovit_deploy.families.heads import (
    LightUpHead,
    MaskTransformerHead,
    SetrUpHead,
    finer_grid_from_tokens,
    grid_from_tokens,
)
from dovit_deploy.families.layers import Block
from dovit_deploy.families.vit.network import LastStage, Lens, MiddleStage, TokenGate, VisionTransformer, _LaterStage
from tests.mutants.mutant import Catalogue, Overlay, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="mask")
def padding_is_added_left_and_on_top(patch: Patch) -> None:
    def padded(pixels: Tensor, size: int, padding: str) -> Tensor:
        assert padding == "end"
        height, width = pixels.shape[-2:]
        return functional.pad(pixels, (-width % size, 0, -height % size, 0))

    patch.setattr(layers, "padded", padded)


@CATALOGUE.add(caught_by="mask")
def padding_repeats_the_border(patch: Patch) -> None:
    def padded(pixels: Tensor, size: int, padding: str) -> Tensor:
        assert padding == "end"
        height, width = pixels.shape[-2:]
        return functional.pad(pixels, (0, -width % size, 0, -height % size), mode="replicate")

    patch.setattr(layers, "padded", padded)


@CATALOGUE.add(caught_by="mask")
def extra_tokens_get_no_position(patch: Patch) -> None:
    embed = VisionTransformer.embed

    def without(self: Any, pixels: Tensor) -> Tensor:
        return torch.cat([self.extra_tokens, embed(self, pixels)[self.spec.extra_tokens :]])

    patch.setattr(VisionTransformer, "embed", without)


@CATALOGUE.add(caught_by="mask")
def extra_tokens_stand_behind_the_positions(patch: Patch) -> None:
    embed = VisionTransformer.embed

    def shifted(self: VisionTransformer, pixels: Tensor) -> Tensor:
        return embed(self, pixels) - self.positions + self.positions.roll(-self.spec.extra_tokens, 0)

    patch.setattr(VisionTransformer, "embed", shifted)


@CATALOGUE.add(caught_by="positions")
def positions_are_resized_by_shape(patch: Patch) -> None:
    def state_at_size(state: dict[str, Tensor], spec: Any, size: tuple[int, int]) -> dict[str, Tensor]:
        target = registry.spec_at_size(spec, size)
        extra, grid = state["positions"][: spec.extra_tokens], state["positions"][spec.extra_tokens :]
        image = grid_from_tokens(grid, spec.grid)
        resized = functional.interpolate(image, target.grid, mode=spec.position_mode).flatten(2)[0].T
        return {**state, "positions": torch.cat([extra, resized])}

    patch.setattr(registry, "state_at_size", state_at_size)


@CATALOGUE.add(caught_by="positions")
def positions_are_always_bicubic(patch: Patch) -> None:
    def interpolate(image: Tensor, **given: Any) -> Tensor:
        return functional.interpolate(image, **{**given, "mode": "bicubic"})

    patch.setattr(layers, "functional", Overlay(functional, interpolate=interpolate))


@CATALOGUE.add(caught_by="positions")
def positions_are_resized_with_aligned_corners(patch: Patch) -> None:
    def interpolate(image: Tensor, **given: Any) -> Tensor:
        # PyTorch has no antialiasing with aligned corners.
        return functional.interpolate(image, **{**given, "align_corners": not given.get("antialias", False)})

    patch.setattr(layers, "functional", Overlay(functional, interpolate=interpolate))


@CATALOGUE.add(caught_by="positions")
def positions_are_antialiased(patch: Patch) -> None:
    def interpolate(image: Tensor, **given: Any) -> Tensor:
        return functional.interpolate(image, **{**given, "antialias": True})

    patch.setattr(layers, "functional", Overlay(functional, interpolate=interpolate))


@CATALOGUE.add(caught_by="quiet_mask")
def blocks_use_pytorchs_own_epsilon(patch: Patch) -> None:
    make = Block.__init__

    def wrong(self: Any, width: int, heads: int, hidden: int, norm_eps: float, *others: Any) -> None:
        make(self, width, heads, hidden, max(norm_eps, 1e-5), *others)

    patch.setattr(Block, "__init__", wrong)


@CATALOGUE.add(caught_by="quiet_mask")
def the_mask_head_uses_the_backbones_epsilon(patch: Patch) -> None:
    make = MaskTransformerHead.__init__

    def wrong(self: Any, spec: Any, *arguments: Any) -> None:
        make(self, spec.model_copy(update={"norm_eps": 1e-6}), *arguments)

    patch.setattr(MaskTransformerHead, "__init__", wrong)


@CATALOGUE.add(caught_by="quiet_grid")
def the_up_sampling_head_uses_pytorchs_own_epsilon(patch: Patch) -> None:
    make = SetrUpHead.__init__

    def wrong(self: Any, spec: Any, *arguments: Any, **options: Any) -> None:
        make(self, spec.model_copy(update={"norm_eps": 1e-5}), *arguments, **options)

    patch.setattr(SetrUpHead, "__init__", wrong)


@CATALOGUE.add(caught_by="folding")
def batch_norms_use_another_epsilon(patch: Patch) -> None:
    patch.setattr(folding, "EPS", 1e-3)


@CATALOGUE.add(caught_by="mask")
def the_final_norm_skips_stopped_tokens(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor) -> Tensor:
        tokens = self.advance(tokens, index)
        normed = tokens.index_copy(0, index, self.model.norm(tokens[index]))
        spec = self.model.spec
        return self.model.head(normed[spec.extra_tokens :], spec.grid)  # type: ignore[no-any-return]

    patch.setattr(LastStage, "forward", forward)


@CATALOGUE.add(caught_by="mask")
def norms_come_after_the_blocks(patch: Patch) -> None:
    def forward(self: Any, x: Tensor, attend: Any = layers.attention) -> Tensor:
        x = self.norm1(x + self.attention(x, attend))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]

    patch.setattr(Block, "forward", forward)


@CATALOGUE.add(caught_by="mask")
def gelu_is_approximated_by_tanh(patch: Patch) -> None:
    overlay = Overlay(functional, gelu=lambda x: functional.gelu(x, approximate="tanh"))
    patch.setattr(layers, "functional", overlay)


@CATALOGUE.add(caught_by="mask")
def attention_is_scaled_by_the_whole_width(patch: Patch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        width = query.shape[-3] * query.shape[-1]
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, scale=width**-0.5)

    patch.setattr(layers, "functional", Overlay(functional, scaled_dot_product_attention=attend))


@CATALOGUE.add(caught_by="grid")
def up_sampling_aligns_corners(patch: Patch) -> None:
    def interpolate(image: Tensor, *, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
        return functional.interpolate(image, size=size, mode=mode, align_corners=True)

    patch.setattr(heads, "functional", Overlay(functional, interpolate=interpolate))


@CATALOGUE.add(caught_by="grid")
def up_sampling_is_bicubic(patch: Patch) -> None:
    def interpolate(image: Tensor, *, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
        return functional.interpolate(image, size=size, mode="bicubic", align_corners=False)

    patch.setattr(heads, "functional", Overlay(functional, interpolate=interpolate))


@CATALOGUE.add(caught_by="mask")
def class_embeddings_stand_in_front_of_the_patches(patch: Patch) -> None:
    # The network does not mind the order itself, only that it is read back as it was written.
    def cat(parts: list[Tensor], dim: int) -> Tensor:
        return torch.cat(parts[::-1], dim=dim)

    patch.setattr(heads, "torch", Overlay(torch, cat=cat))


@CATALOGUE.add(caught_by="mask")
def patches_and_prototypes_keep_their_length(patch: Patch) -> None:
    patch.setattr(heads, "functional", Overlay(functional, normalize=lambda x, dim: x))


@CATALOGUE.add(caught_by="mask")
def masks_are_normed_over_the_patches(patch: Patch) -> None:
    class OverPatches(torch.nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            normed = functional.layer_norm(x.mT, x.mT.shape[-1:], eps=self.eps).mT
            return normed * self.weight + self.bias

    make = MaskTransformerHead.__init__

    def wrong(self: Any, spec: Any, width: int, classes: int) -> None:
        make(self, spec, width, classes)
        self.mask_norm = OverPatches(classes, eps=1e-5)

    patch.setattr(MaskTransformerHead, "__init__", wrong)


@CATALOGUE.add(caught_by="grid")
def rows_and_columns_of_the_grid_are_exchanged(patch: Patch) -> None:
    def turned(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return grid_from_tokens(tokens, (grid[1], grid[0])).mT

    patch.setattr(heads, "grid_from_tokens", turned)


@CATALOGUE.add(caught_by="lens")
def a_lens_is_applied_twice(patch: Patch) -> None:
    once = Lens.forward
    patch.setattr(Lens, "forward", lambda self, tokens: once(self, once(self, tokens)))


@CATALOGUE.add(caught_by="lens")
def a_lens_reads_features_without_a_norm(patch: Patch) -> None:
    patch.setattr(Lens, "forward", lambda self, tokens: self.linear(tokens))


@CATALOGUE.add(caught_by="lens")
def the_first_gates_lens_serves_all(patch: Patch) -> None:
    forward = MiddleStage.forward

    def first(self: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        own = list(self.model.lenses)
        self.model.lenses[self.number] = own[0]
        try:
            return forward(self, *inputs)
        finally:
            self.model.lenses[self.number] = own[self.number]

    patch.setattr(MiddleStage, "forward", first)


@CATALOGUE.add(caught_by="lens")
def a_later_gate_answers_for_what_stopped_before(patch: Patch) -> None:
    forward = MiddleStage.forward

    def again(self: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        *found, _ = forward(self, *inputs)
        return *found, self.model.lenses[self.number](found[0])

    patch.setattr(MiddleStage, "forward", again)


@CATALOGUE.add(caught_by="lens")
def kept_tokens_answer_through_the_last_lens(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor, answers: Tensor) -> Tensor:
        return self.model.decode(
            self.model.lenses[-1](self.advance(tokens, index)).where(_listed(index, answers), answers)
        )

    patch.setattr(LastStage, "forward", forward)


@CATALOGUE.add(caught_by="lens")
def stopped_tokens_answer_as_they_are(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor, answers: Tensor) -> Tensor:
        return self.model.decode(self.advance(tokens, index))

    patch.setattr(LastStage, "forward", forward)


@CATALOGUE.add(caught_by="lens")
def a_tokens_positions_are_spread_column_by_column(patch: Patch) -> None:
    def turned(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        four = tokens.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3)
        return finer_grid_from_tokens(four, grid)

    patch.setattr(heads, "finer_grid_from_tokens", turned)


@CATALOGUE.add(caught_by="lens")
def the_light_head_has_no_norm(patch: Patch) -> None:
    make = LightUpHead.__init__

    def wrong(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        self.norm.forward = lambda tokens: tokens

    patch.setattr(LightUpHead, "__init__", wrong)


@CATALOGUE.add(caught_by="tapped")
def taps_come_after_the_next_layer_instead_of_before(patch: Patch) -> None:
    def run_layers(self: Any, tokens: Tensor, layers: tuple[int, int], attend: Any) -> tuple[Tensor, dict[int, Tensor]]:
        values = [tokens]
        for layer in range(layers[0], self.spec.depth):
            values.append(self.blocks[layer](values[-1], attend))
        tapped = {tap: values[tap + 1 - layers[0]] for tap in self.spec.taps if layers[0] < tap <= layers[1]}
        return values[layers[1] - layers[0]], tapped

    patch.setattr(VisionTransformer, "run_layers", run_layers)


@CATALOGUE.add(caught_by="tapped")
def taps_hold_nothing_of_what_has_stopped(patch: Patch) -> None:
    at_taps = _LaterStage.at_taps

    def forgetful(self: Any, tapped: dict[int, Tensor], tokens: Tensor, *given: Any) -> dict[str, Tensor]:
        return at_taps(self, tapped, torch.zeros_like(tokens), *given)

    patch.setattr(_LaterStage, "at_taps", forgetful)


@CATALOGUE.add(caught_by="tapped")
def taps_are_seen_without_the_last_norm(patch: Patch) -> None:
    def features(self: Any, tokens: Tensor, tapped: list[Tensor]) -> Tensor:
        return torch.cat([*tapped, self.norm(tokens)], -1)

    patch.setattr(VisionTransformer, "features", features)


@CATALOGUE.add(caught_by="tapped")
def the_last_layer_is_seen_first(patch: Patch) -> None:
    features = VisionTransformer.features
    patch.setattr(
        VisionTransformer,
        "features",
        lambda self, tokens, tapped: features(self, tokens, tapped).roll(self.spec.width, -1),
    )


@CATALOGUE.add(caught_by="tap_lenses")
def taps_see_what_a_token_stopped_with_in_spite_of_lenses(patch: Patch) -> None:
    at_taps = _LaterStage.at_taps

    def plain(self: Any, tapped: dict[int, Tensor], tokens: Tensor, index: Tensor, taken: Any) -> dict[str, Tensor]:
        return at_taps(self, tapped, tokens, index, {})

    patch.setattr(_LaterStage, "at_taps", plain)


@CATALOGUE.add(caught_by="tap_lenses")
def the_last_layers_lens_serves_all_taps(patch: Patch) -> None:
    make = VisionTransformer.__init__

    def shared(self: Any, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        for lens, lenses in zip(self.lenses, self.tap_lenses, strict=True):
            for one in lenses.values():
                one.forward = lens.forward

    patch.setattr(VisionTransformer, "__init__", shared)


@CATALOGUE.add(caught_by="tap_lenses")
def taps_see_lenses_of_what_ran_to_them(patch: Patch) -> None:
    patch.setattr(
        _LaterStage,
        "at_taps",
        lambda self, tapped, tokens, index, taken: {f"tap{tap}": taken.get(f"tap{tap}", tokens) for tap in tapped},
    )


@CATALOGUE.add(caught_by="gate_answers")
def the_head_answers_for_what_stopped_too(patch: Patch) -> None:
    def forward(self: Any, tokens: Tensor, index: Tensor, answers: Tensor, *taps: Tensor) -> Tensor:
        return self.model.decode(self.advance(tokens, index), taps)

    patch.setattr(LastStage, "forward", forward)


@CATALOGUE.add(caught_by="gate_answers")
def gates_answer_with_probabilities(patch: Patch) -> None:
    look, decide = TokenGate.look, TokenGate.decide
    patch.setattr(TokenGate, "look", lambda self, tokens, index: look(self, tokens, index).softmax(1))
    patch.setattr(TokenGate, "decide", lambda self, shares, *given: decide(self, shares.log(), *given))


@CATALOGUE.add(caught_by="gate_answers")
def answers_of_patches_are_written_where_extra_tokens_stand(patch: Patch) -> None:
    patch.setattr(_LaterStage, "patches", lambda self, index: index[: len(index) - self.model.spec.extra_tokens])


@CATALOGUE.add(caught_by="gate_answers")
def the_last_gate_answers_for_what_ran_to_the_end(patch: Patch) -> None:
    renewed = _LaterStage.renewed

    def kept(self: Any, name: str, value: Tensor, before: Tensor, index: Tensor) -> Tensor:
        return before if isinstance(self, LastStage) else renewed(self, name, value, before, index)

    patch.setattr(_LaterStage, "renewed", kept)


def _listed(index: Tensor, like: Tensor) -> Tensor:
    """(E + N, 1) bool: the rows that `index` lists."""
    return torch.zeros(len(like), dtype=torch.bool).index_fill(0, index, True)[:, None]
